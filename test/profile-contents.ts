// A small complete profile's contents, with random bases. Does not know what is tested.

import { seededRandom } from '../src/base/random.ts';
import type { MatrixSource } from '../src/linalg/backend.ts';
import type { QualityPoint, StreamBasis } from '../src/profile/profile.ts';
import type { ProfileContents } from '../src/profile/write-profile.ts';

export function matrix(rows: number, columns: number, seed: number): MatrixSource & { values: Float32Array } {
  const random = seededRandom(seed);
  const values = Float32Array.from({ length: rows * columns }, () => random.normal() / Math.sqrt(columns));
  return {
    rows,
    columns,
    values,
    read: async (start, end, out) => out.set(values.subarray(start * columns, end * columns)),
  };
}

export function stream(rank: number, width: number, seed: number): StreamBasis & { basis: { values: Float32Array } } {
  const random = seededRandom(seed + 1);
  return {
    mean: Float32Array.from({ length: width }, () => random.normal()),
    variances: Float32Array.from({ length: rank }, (_, i) => 1 / (1 + i)),
    basis: matrix(rank, width, seed),
  };
}

export const point: QualityPoint = {
  ratio: 16,
  paperRatio: 18.25,
  effectiveRatio: 10.5,
  klNats: 0.0125,
  copyKlNats: null,
  top1Agreement: 0.95,
  weights: 'exact',
  text: 'a held-out document',
  tokens: 1024,
};

export const contents = {
  model: {
    architecture: 'llama',
    name: 'tiny',
    geometry: { layers: 2, kvHeads: 3, keyHeadDim: 8, valueHeadDim: 16 },
    rope: {
      pairing: 'interleaved',
      dims: 8,
      frequencyBase: 10_000,
      frequencyScale: 1,
      extFactor: 0,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 2048,
      frequencyFactors: [1, 1.5, 2, 4],
    },
    fingerprint: 'ab'.repeat(32),
  },
  streams: { key: stream(32, 48, 1), value: stream(48, 96, 2) },
  plans: [
    {
      ratio: 16,
      key: {
        rank: 32,
        groups: [
          { start: 0, size: 1, type: 'fp8', exponent: -2 },
          { start: 16, size: 16, type: 'int4', exponent: 0 },
        ],
      },
      value: { rank: 16, groups: [{ start: 0, size: 16, type: 'int2', exponent: 0 }] },
      keyError: 0.03,
      valueError: 0.05,
    },
    { ratio: 8, key: { rank: 0, groups: [] }, value: { rank: 0, groups: [] }, keyError: 1, valueError: 1 },
  ],
  provenance: {
    seed: 7,
    rows: 20_000,
    heldOutRows: 2048,
    sinks: 4,
    documents: [{ source: 'prose/ä.txt', sha256: 'cd'.repeat(32), tokens: 4096 }],
    producer: 'kvtc 0.1.0',
  },
  quality: [point],
} as const satisfies ProfileContents;
