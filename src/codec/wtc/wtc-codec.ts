// The codec `wtc` (weighted transform coding): one uniform step, class tables, rANS in lanes. Coefficients and token
// classes of a chunk of one stream ⇄ final bytes; nothing is compressed after it (docs/format/wtc-codec.md).
// Does not know transforms, importance, or where chunks are kept.

import { invariant } from '../../base/errors.ts';
import { TOKEN_CLASSES, TOKEN_CLASS_MIN } from './classes.ts';
import { decodeLanes } from './decode.ts';
import { encodeLanes } from './encode.ts';
import { MAX_LANES, readFrame } from './frame.ts';
import type { WtcPlan } from './plan.ts';

/** Tokens that share a lane: its state and length, about 5 bytes, then cost 0.1 to 0.3 % of the rate. */
const TOKENS_PER_LANE = 16;

/**
 * The name a container's header gives. Deterministic: same coefficients, classes and plan, same bytes. Integers decode
 * alike on every machine; coefficients are those integers times the token's step, rounded once to f32.
 */
export const WTC_CODEC_ID = 'wtc';

/** Lanes that the encoder gives a chunk. Any number that the format allows decodes. */
export function laneCount(tokenCount: number): number {
  return Math.min(MAX_LANES, Math.ceil(tokenCount / TOKENS_PER_LANE));
}

/**
 * Bytes of a chunk. `coefficients` f32[tokenCount, rank], zeros from there to the plan's rank; `tokenClasses`
 * i8[tokenCount] in [−8, 7]: half octaves of the step multiplier. Throws KVTC_ROWS_NOT_FINITE on NaN or ±Inf.
 */
export function encodeWtcChunk(
  coefficients: Float32Array,
  tokenCount: number,
  tokenClasses: Int8Array,
  plan: WtcPlan,
  rank = plan.rank,
): Uint8Array {
  invariant(
    tokenCount >= 1 && tokenClasses.length === tokenCount,
    `${tokenClasses.length} classes, ${tokenCount} tokens`,
  );
  invariant(
    rank <= plan.rank && coefficients.length >= tokenCount * rank,
    `${coefficients.length} coefficients of rank ${rank} for a plan of rank ${plan.rank}`,
  );
  for (const tokenClass of tokenClasses) {
    invariant(
      tokenClass >= TOKEN_CLASS_MIN && tokenClass < TOKEN_CLASS_MIN + TOKEN_CLASSES,
      `token class ${tokenClass}`,
    );
  }
  return encodeLanes(coefficients, tokenCount, tokenClasses, laneCount(tokenCount), plan, rank);
}

/**
 * Puts what each token codes (codedPairs of its class) first in its row of `out` f32[tokenCount, plan.rank], where the rest,
 * which stands for zeros, keeps its values; returns the token classes i8[tokenCount]. Memory is bounded by the chunk's length
 * and the plan. Throws KVTC_CHUNK_MALFORMED on bytes that no encoder writes.
 */
export function decodeWtcChunk(bytes: Uint8Array, tokenCount: number, plan: WtcPlan, out: Float32Array): Int8Array {
  invariant(tokenCount >= 1 && out.length >= tokenCount * plan.rank, `room for ${out.length} of ${tokenCount} tokens`);
  const tokenClasses = new Int8Array(tokenCount);
  decodeLanes(readFrame(bytes, tokenCount), tokenCount, plan, out, tokenClasses);
  return tokenClasses;
}
