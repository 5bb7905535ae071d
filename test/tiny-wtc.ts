// Tiny containers of the codec wtc, from a seed and a synthetic profile: for golden files. Coefficients
// take the product's way from the codec on; no engine, no transform.

import { seededRandom } from '../src/base/random.ts';
import type { WindowMode } from '../src/cache/chunk-seam.ts';
import { layOutTokens } from '../src/cache/layout.ts';
import { createWtcEncoder } from '../src/cache/wtc-chunks.ts';
import { laplaceRows } from '../src/codec/wtc/fixture.test-data.ts';
import type { ContainerTarget } from '../src/container/types.ts';
import { createContainerWriter } from '../src/container/writer.ts';
import type { WtcProfile } from '../src/profile/profile.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { tinyExactRows } from './tiny-paper.ts';

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
  const encoder = createWtcEncoder(profile, { ...options, sinks: 0 });
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
