// What a chunk will cost without coding it: code lengths by the tables, beside the least any static tables could reach
// on the same symbols. Lets calibration search the step for a rate. Does not know bytes.

import { invariant } from '../../base/errors.ts';
import { PROBABILITY_BITS } from '../entropy/rans.ts';
import { TOKEN_CLASSES, TOKEN_CLASS_MIN, tokenStep } from './classes.ts';
import { tokenClassFrequencies, tokenClassWeights } from './frame.ts';
import type { WtcPlan } from './plan.ts';
import { createTokenSteps, symboliseToken } from './symbolise.ts';
import { ENTRY_STRIDE, TABLES } from './symbols.ts';
import { laneCount } from './wtc-codec.ts';

export interface BitEstimate {
  /** Code length by the plan's tables, raw bits and token classes included. */
  readonly codedBits: number;
  /** The same symbols under tables fitted to these very tokens: what better tables could save at most. */
  readonly idealBits: number;
  /** What a chunk adds: its head, and per lane a length and a state (of which half a word is used on average). */
  readonly frameBits: number;
  /** Expected size of the chunk: codedBits + frameBits. Within 1 % of its bytes · 8 from a few kilobytes on. */
  readonly totalBits: number;
}

/** Shapes and ranges as encodeWtcChunk; coefficients must be finite. O(tokens · coded components). */
export function estimateBits(
  coefficients: Float32Array,
  tokenCount: number,
  tokenClasses: Int8Array,
  plan: WtcPlan,
): BitEstimate {
  invariant(coefficients.length >= tokenCount * plan.rank && tokenClasses.length === tokenCount, 'rows to estimate');
  const { frequencies } = plan.family;
  const token = createTokenSteps(plan.rank);
  const counts = new Float64Array(TABLES * ENTRY_STRIDE);
  let rawBits = 0;
  for (let t = 0; t < tokenCount; t++) {
    const tokenClass = tokenClasses[t]!;
    symboliseToken(coefficients, t * plan.rank, tokenClass, tokenStep(plan.stepIndex, tokenClass), plan, token);
    for (let i = 0; i < token.stepCount; i++) {
      const step = token.steps[i]!;
      if (step >= 0) counts[step]!++;
      else rawBits += (-1 - step) & 15;
    }
  }
  let codedBits = rawBits;
  let idealBits = rawBits;
  for (let first = 0; first < counts.length; first += ENTRY_STRIDE) {
    const row = counts.subarray(first, first + ENTRY_STRIDE);
    const total = row.reduce((sum, count) => sum + count, 0);
    row.forEach((count, symbol) => {
      if (count === 0) return;
      codedBits += count * (PROBABILITY_BITS - Math.log2(frequencies[first + symbol]!));
      idealBits += count * Math.log2(total / count);
    });
  }
  const classBits = tokenClassBits(tokenClasses);
  const lanes = laneCount(tokenCount);
  const laneBytes = codedBits / 8 / lanes;
  const frameBits = 8 * (1 + TOKEN_CLASSES / 2) + lanes * (8 * (laneBytes > 255 ? 2 : 1) + 24);
  return {
    codedBits: codedBits + classBits,
    idealBits: idealBits + classBits,
    frameBits,
    totalBits: codedBits + classBits + frameBits,
  };
}

function tokenClassBits(tokenClasses: Int8Array): number {
  const frequencies = tokenClassFrequencies(tokenClassWeights(tokenClasses)) ?? [];
  let bits = 0;
  for (const tokenClass of tokenClasses) {
    bits += PROBABILITY_BITS - Math.log2(frequencies[tokenClass - TOKEN_CLASS_MIN]!);
  }
  return bits;
}
