// The paper's codec behind the chunk seam: a plan by ratio, then the entropy stage.
// Does not know: engine rows, transforms, files.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { compressBlocks, decompressBlocks, entropyMethod } from '../codec/entropy/blocks.ts';
import { paperCodec } from '../codec/paper/paper-codec.ts';
import { filePaperParameters, parsePaperParameters } from '../codec/paper/parameters.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import type { ContainerHeader } from '../container/types.ts';
import type { PaperProfile } from '../profile/profile.ts';
import type { ChunkDecoder, ChunkEncoder, CodingOptions, StoredChunk } from './chunk-seam.ts';
import { DEFAULT_RATIO, checkRank } from './chunk-seam.ts';

/** See createChunkEncoder. */
export function createPaperEncoder(profile: PaperProfile, options: CodingOptions): ChunkEncoder {
  if (options.step !== undefined || options.windowMode === 'finer' || options.sinkMode === 'finer') {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `codec ${paperCodec.id} has no steps, and so neither a finer window nor finer sinks; use a wtc profile`,
    );
  }
  const ratio = options.ratio ?? DEFAULT_RATIO;
  const { keyRatio = ratio, valueRatio = ratio, entropy = 'deflate' } = options;
  const level = options.entropyLevel;
  const plans = { key: planFor(profile, 'key', keyRatio), value: planFor(profile, 'value', valueRatio) };
  const ranks = { key: plans.key.rank, value: plans.value.rank };
  return {
    codec: paperCodec.id,
    parameters: filePaperParameters({ keyRatio, valueRatio, ...plans }),
    entropy,
    exactSinks: options.sinks,
    exactWindow: options.window,
    ranks: () => ranks,
    encode: async (coefficients, { startToken, endToken }) => {
      const code = async (stream: StreamKind): Promise<StoredChunk> => {
        const packed = paperCodec.encodeChunk(coefficients[stream], endToken - startToken, plans[stream]);
        return { packedBytes: packed.length, stored: await compressBlocks(packed, { method: entropy, level }) };
      };
      const [key, value] = await Promise.all([code('key'), code('value')]);
      return { key, value };
    },
  };
}

function planFor(profile: PaperProfile, stream: StreamKind, ratio: number): PaperPlan {
  const plans = profile.plans.find((plan) => plan.ratio === ratio);
  if (plans === undefined) {
    throw new KvtcError(
      'KVTC_PLAN_MISSING',
      `the profile has no plan for ratio ${ratio}; it has ${profile.plans.map((plan) => plan.ratio).join(', ')}`,
      { ratio },
    );
  }
  return plans[stream];
}

/** See createChunkDecoder. */
export function createPaperDecoder(header: ContainerHeader, profile: PaperProfile): ChunkDecoder {
  const plans = parsePaperParameters(header.codecParameters);
  const method = entropyMethod(header.entropy);
  // Before any chunk: coefficients are allocated by the plan's rank, and a plan without groups needs no bytes to ask.
  for (const stream of STREAMS) checkRank(stream, plans[stream].rank, profile);
  return {
    decode: async (stored, { stream, startToken, endToken, chunks }, pool) => {
      const plan = plans[stream];
      const packed = await Promise.all(
        chunks.map((chunk, i) => {
          const expectedBytes = paperCodec.packedBytes(chunk.endToken - chunk.startToken, plan);
          if (chunk.packedBytes !== expectedBytes) {
            throw new KvtcError(
              'KVTC_CHUNK_MALFORMED',
              `${stream} chunk at token ${chunk.startToken} says ${chunk.packedBytes} packed bytes, its plan makes ${expectedBytes}`,
              { stream, startToken: chunk.startToken, gotBytes: chunk.packedBytes, expectedBytes },
            );
          }
          return decompressBlocks(stored[i]!, expectedBytes, method);
        }),
      );
      const coefficients = pool.take((endToken - startToken) * plan.rank); // [tokens, rank]
      for (const [i, chunk] of chunks.entries()) {
        const part = coefficients.subarray((chunk.startToken - startToken) * plan.rank);
        paperCodec.decodeChunk(packed[i]!, chunk.endToken - chunk.startToken, plan, part);
      }
      return { coefficients, rank: plan.rank };
    },
  };
}
