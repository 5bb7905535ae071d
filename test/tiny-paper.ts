// Tiny containers of the paper's codec and the synthetic profile they belong to, from a seed: for golden files, the
// Python decoder and hostile chunks. Two models between them cover both pairings, partial and scaled RoPE.

import type { ElementType, TokenRange } from '../src/base/geometry.ts';
import { seededRandom } from '../src/base/random.ts';
import type { Random } from '../src/base/random.ts';
import { layOutTokens } from '../src/cache/layout.ts';
import { compressBlocks } from '../src/codec/entropy/blocks.ts';
import type { EntropyMethod } from '../src/codec/entropy/blocks.ts';
import { paperCodec } from '../src/codec/paper/paper-codec.ts';
import { filePaperParameters } from '../src/codec/paper/parameters.ts';
import type { PaperPlan } from '../src/codec/paper/plan.ts';
import type { ContainerHeader, ContainerTarget } from '../src/container/types.ts';
import { createContainerWriter } from '../src/container/writer.ts';
import { openProfile } from '../src/profile/open-profile.ts';
import type { ModelIdentity, Profile, StreamBasis } from '../src/profile/profile.ts';
import { writeProfile } from '../src/profile/write-profile.ts';
import { encodeBf16, encodeF16 } from '../src/base/half.ts';
import { STREAMS, elementBytes, layerWidth } from '../src/base/geometry.ts';

const geometry = { layers: 2, kvHeads: 2, keyHeadDim: 16, valueHeadDim: 16 };
const WIDTH = 64;
const RANK = 32;

const plainRope = {
  pairing: 'half-split',
  dims: 16,
  frequencyBase: 10000,
  frequencyScale: 1,
  extFactor: 0,
  attnFactor: 1,
  betaFast: 32,
  betaSlow: 1,
  originalContext: 2048,
  frequencyFactors: [1, 1, 1, 1.5, 2, 4, 8, 8],
} as const;

export const TINY_MODELS: Readonly<Record<'factors' | 'yarn', ModelIdentity>> = {
  /** All dimensions, half-split, Llama-3 style factors. */
  factors: { architecture: 'llama', name: 'tiny factors', geometry, rope: plainRope, fingerprint: '1f'.repeat(32) },
  /** Half of the dimensions, interleaved, YaRN. */
  yarn: {
    architecture: 'llama',
    name: 'tiny yarn',
    geometry,
    rope: {
      ...plainRope,
      pairing: 'interleaved',
      dims: 8,
      frequencyScale: 0.25,
      extFactor: 1,
      attnFactor: 0.9,
      originalContext: 512,
      frequencyFactors: null,
    },
    fingerprint: '2e'.repeat(32),
  },
};
export type TinyModel = keyof typeof TINY_MODELS;

/** Every type, odd sizes with padding bits, a gap, a negative exponent, and an unused tail. */
const KEY_PLAN: PaperPlan = {
  rank: 32,
  groups: [
    { start: 0, size: 1, type: 'fp8', exponent: -2 },
    { start: 1, size: 1, type: 'int4', exponent: 0 },
    { start: 2, size: 3, type: 'int2', exponent: 0 },
    { start: 5, size: 5, type: 'int4', exponent: 0 },
    { start: 12, size: 2, type: 'fp8', exponent: -7 },
    { start: 16, size: 16, type: 'int2', exponent: 0 },
  ],
};
const VALUE_PLAN: PaperPlan = { rank: 16, groups: [{ start: 0, size: 16, type: 'int4', exponent: 0 }] };
const PLANS = { key: KEY_PLAN, value: VALUE_PLAN };

/** Writes the profile of a tiny model and opens it. */
export async function writeTinyProfile(path: string, model: TinyModel): Promise<Profile> {
  const random = seededRandom(model === 'factors' ? 11 : 12);
  await writeProfile(path, {
    model: TINY_MODELS[model],
    streams: { key: tinyBasis(random), value: tinyBasis(random) },
    plans: [{ ratio: 8, ...PLANS, keyError: 0.1, valueError: 0.2 }],
    provenance: { seed: 11, rows: 0, heldOutRows: 0, sinks: 0, documents: [], producer: 'synthetic' },
    quality: [],
  });
  return openProfile(path);
}

function tinyBasis(random: Random): StreamBasis {
  const rows: number[][] = [];
  while (rows.length < RANK) {
    const row = Array.from({ length: WIDTH }, () => random.normal());
    for (const other of rows) {
      const along = row.reduce((sum, x, i) => sum + x * (other[i] as number), 0);
      other.forEach((x, i) => (row[i] = (row[i] as number) - along * x));
    }
    const norm = Math.hypot(...row);
    rows.push(row.map((x) => x / norm));
  }
  return {
    mean: Float32Array.from({ length: WIDTH }, () => random.normal()),
    variances: Float32Array.from({ length: RANK }, (_, i) => 4 / (1 + i) ** 2),
    basis: {
      rows: RANK,
      columns: WIDTH,
      read: async (start, end, out) => out.set(rows.slice(start, end).flat()),
    },
  };
}

export interface TinyPaperOptions {
  readonly tokenCount: number;
  readonly sinks: number;
  readonly window: number;
  readonly exactRanges?: readonly { readonly startToken: number; readonly endToken: number }[];
  readonly chunkTokens: number;
  readonly entropy: EntropyMethod;
  readonly elementTypes: Readonly<Record<'key' | 'value', ElementType>>;
  readonly seed: number;
  /** Position of the first token; the second half of the sequence jumps ahead by 100. */
  readonly firstPosition: number;
  readonly withTokens: boolean;
}

/** Writes a container of random coefficients through the product's codec, entropy stage and writer. */
export async function writeTinyPaper(
  target: string | ContainerTarget,
  profile: Profile,
  options: TinyPaperOptions,
): Promise<void> {
  const { tokenCount, chunkTokens, entropy, elementTypes, firstPosition } = options;
  const random = seededRandom(options.seed);
  const layout = layOutTokens(tokenCount, { exactRanges: [], ...options });
  const header: ContainerHeader = {
    producer: 'kvtc 0.1.0',
    codec: paperCodec.id,
    codecParameters: filePaperParameters({ keyRatio: 8, valueRatio: 8, ...PLANS }),
    entropy,
    profileId: profile.id,
    model: profile.model,
    tokenCount,
    chunkTokens,
    elementTypes,
    exactRanges: layout.exact,
    engine: 'synthetic',
  };
  const writer = createContainerWriter(target, header);
  try {
    for (const [index, range] of layout.exact.entries()) {
      for (const stream of STREAMS) {
        await writer.writeExactRows(stream, index, tinyExactRows(random, elementTypes[stream], range));
      }
    }
    for (const range of layout.chunks) {
      for (const stream of STREAMS) {
        const plan = PLANS[stream];
        const tokens = range.endToken - range.startToken;
        const coefficients = Float32Array.from(
          { length: tokens * plan.rank },
          (_, i) => (random.normal() * 2) / (1 + (i % plan.rank)),
        );
        const packed = paperCodec.encodeChunk(coefficients, tokens, plan);
        const stored = await compressBlocks(packed, { method: entropy });
        await writer.writeChunk({ stream, ...range, packedBytes: packed.length }, stored);
      }
    }
    const half = tokenCount >> 1;
    writer.writePositions(
      Int32Array.from({ length: tokenCount }, (_, token) => firstPosition + token + (token >= half ? 100 : 0)),
    );
    if (options.withTokens) writer.writeTokens(Int32Array.from({ length: tokenCount }, () => random.below(32000)));
    await writer.finish();
  } finally {
    await writer.abort();
  }
}

/** Exact rows of all layers of a tiny model, keys or values: both are as wide. */
export function tinyExactRows(random: Random, type: ElementType, { startToken, endToken }: TokenRange): Uint8Array {
  const values = geometry.layers * (endToken - startToken) * layerWidth(geometry, 'key');
  const numbers = Float32Array.from({ length: values }, () => random.normal());
  if (type === 'f32') return new Uint8Array(numbers.buffer);
  if (type === 'q8_0') {
    const bytes = Uint8Array.from({ length: elementBytes(type, values) }, () => random.below(256));
    for (let block = 0; block < bytes.length; block += 34) bytes[block + 1] = 0x20; // scales of about 2^-7
    return bytes;
  }
  const halves = new Uint16Array(values);
  if (type === 'f16') encodeF16(numbers, halves);
  else encodeBf16(numbers, halves);
  return new Uint8Array(halves.buffer);
}
