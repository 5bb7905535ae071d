// Tiny containers of the codec wtc and the synthetic profile they belong to, from a seed: for golden files. Coefficients
// take the product's way from the codec on; no engine, no transform.

import { seededRandom } from '../src/base/random.ts';
import type { WindowMode } from '../src/cache/chunk-seam.ts';
import { layOutTokens } from '../src/cache/layout.ts';
import { createWtcEncoder } from '../src/cache/wtc-chunks.ts';
import { scaleIndices } from '../src/codec/wtc/classes.ts';
import { laplaceRows, testDeviation, testTables } from '../src/codec/wtc/fixture.test-data.ts';
import { rankNeeded } from '../src/codec/wtc/plan.ts';
import type { ContainerTarget } from '../src/container/types.ts';
import { createContainerWriter } from '../src/container/writer.ts';
import { openProfile } from '../src/profile/open-profile.ts';
import type { StepPoint, WtcProfile } from '../src/profile/profile.ts';
import type { WtcStream } from '../src/profile/write-wtc.ts';
import { writeWtcProfile } from '../src/profile/write-wtc.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { matrix } from './profile-contents.ts';
import { TINY_MODELS, tinyExactRows } from './tiny-paper.ts';

const WIDTH = 64;
const RANK = 48;
const COMPONENTS = 16;
const CUT = -5;

/** Writes the profile and opens it: an analysis of its own, a predictor of tokens' importances, three steps. */
export async function writeTinyWtcProfile(path: string): Promise<WtcProfile> {
  const random = seededRandom(21);
  const scales = scaleIndices(Float32Array.from({ length: RANK }, (_, i) => testDeviation(i)));
  const stream = (seed: number): WtcStream => ({
    ...testTables(RANK),
    scales,
    mean: Float32Array.from({ length: WIDTH }, () => random.normal()),
    analysis: matrix(RANK, WIDTH, seed),
    synthesis: matrix(RANK, WIDTH, seed + 1),
  });
  const point = (ratio: number, stepIndex: number): StepPoint => {
    const parameters = { stepIndex, rank: rankNeeded(scales, stepIndex, CUT), cut: CUT };
    return { ratio, bitsPerToken: 2048 / ratio, exponent: 0.4, key: parameters, value: parameters };
  };
  const floats = (length: number): Float32Array => Float32Array.from({ length }, () => random.normal() / 4);
  const deviations = Float32Array.from({ length: COMPONENTS }, (_, i) => testDeviation(i));
  await writeWtcProfile(path, {
    model: TINY_MODELS.yarn,
    streams: { key: stream(31), value: stream(41) },
    steps: [point(8, -64), point(16, 128), point(32, 512)],
    predictor: {
      components: COMPONENTS,
      deviations: { key: deviations, value: deviations },
      weights: { key: floats(4 * COMPONENTS + 3), value: floats(4 * COMPONENTS + 3) },
    },
    provenance: { seed: 21, rows: 0, heldOutRows: 0, sinks: 0, documents: [], producer: 'synthetic' },
    quality: [],
  });
  const profile = await openProfile(path);
  if (profile.codec !== 'wtc') throw new Error(`a profile of ${profile.codec}`);
  return profile;
}

export interface TinyWtcOptions {
  readonly ratio: number;
  readonly window: number;
  readonly windowMode: WindowMode;
  readonly seed: number;
}

/** Writes a container of 90 tokens in chunks of 40: 3 sinks, two octaves of jumps in position. */
export async function writeTinyWtc(
  target: string | ContainerTarget,
  profile: WtcProfile,
  options: TinyWtcOptions,
): Promise<void> {
  const [tokenCount, chunkTokens, sinks] = [90, 40, 3];
  const random = seededRandom(options.seed);
  const encoder = createWtcEncoder(profile, options);
  const layout = layOutTokens(tokenCount, { exactRanges: [], chunkTokens, sinks, window: encoder.exactWindow });
  const elementTypes = { key: 'f16', value: 'f16' } as const;
  const writer = createContainerWriter(target, {
    producer: 'kvtc 0.1.0',
    codec: encoder.codec,
    codecParameters: encoder.parameters,
    entropy: encoder.entropy,
    profileId: profile.id,
    model: profile.model,
    tokenCount,
    chunkTokens,
    elementTypes,
    exactRanges: layout.exact,
    engine: 'synthetic',
  });
  try {
    for (const [index, range] of layout.exact.entries()) {
      for (const stream of STREAMS) {
        await writer.writeExactRows(stream, index, tinyExactRows(random, elementTypes[stream], range));
      }
    }
    for (const range of layout.chunks) {
      const tokens = range.endToken - range.startToken;
      const ranks = encoder.ranks(range, tokenCount);
      const rows = {
        key: laplaceRows(tokens, ranks.key, options.seed + range.startToken),
        value: laplaceRows(tokens, ranks.value, options.seed + range.endToken),
      };
      const chunks = await encoder.encode(rows, range, tokenCount);
      for (const stream of STREAMS) {
        const { packedBytes, stored } = chunks[stream];
        await writer.writeChunk({ stream, ...range, packedBytes }, stored);
      }
    }
    writer.writePositions(Int32Array.from({ length: tokenCount }, (_, token) => 7 + token + (token >= 45 ? 300 : 0)));
    writer.writeTokens(Int32Array.from({ length: tokenCount }, () => random.below(32000)));
    await writer.finish();
  } finally {
    await writer.abort();
  }
}
