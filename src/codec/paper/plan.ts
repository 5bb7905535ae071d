// The published codec's bit plan as data: contiguous groups of components and their types (paper §3.2, readings R1-R4).

import type { CodecPlan } from '../codec.ts';

export type GroupType = 'int2' | 'int4' | 'fp8';

/** Components [start, start + size) of falling variance, coded alike. Components in no group decode to zero. */
export interface PlanGroup {
  readonly start: number;
  readonly size: number;
  readonly type: GroupType;
  /** fp8 only: values are divided by 2^exponent before the E4M3 cast (R3). 0 for integer types. */
  readonly exponent: number;
}

export interface PaperPlan extends CodecPlan {
  readonly groups: readonly PlanGroup[];
}

/** fp8 exponents lie in [−EXPONENT_LIMIT, EXPONENT_LIMIT]: no product of the codec can overflow or go subnormal in f32. */
export const EXPONENT_LIMIT = 100;

/** Ranks are multiples of this (R4), so that matrix products need no ragged edges. */
export const RANK_STEP = 16;

/** Bits of one code of a type. */
export const CODE_BITS: Readonly<Record<GroupType, number>> = { int2: 2, int4: 4, fp8: 8 };

/** Bits of a token's fp16 minimum and fp16 step, which every integer group carries (R1). */
export const METADATA_BITS = 32;

/**
 * What is wrong with a plan that came from outside, in words, or null. `maxRank` is the rank of the basis it is for.
 * Groups must be in rising order without overlap, end within the rank, and fit their type.
 */
export function planProblem(plan: PaperPlan, maxRank: number): string | null {
  const { rank, groups } = plan;
  if (!Number.isInteger(rank) || rank < 0 || rank % RANK_STEP !== 0) {
    return `rank ${rank} is not a multiple of ${RANK_STEP}`;
  }
  if (rank > maxRank) return `rank ${rank} exceeds the basis' ${maxRank}`;
  let end = 0;
  for (const [index, group] of groups.entries()) {
    const { start, size, type, exponent } = group;
    if (!Number.isInteger(start) || !Number.isInteger(size) || start < end || size < 1 || size > rank - start) {
      return `group ${index} [${start}, +${size}) overlaps, is out of order or passes rank ${rank}`;
    }
    if (!Object.hasOwn(CODE_BITS, type)) return `group ${index} has the unknown type ${String(type)}`;
    const limit = type === 'fp8' ? EXPONENT_LIMIT : 0;
    if (!Number.isInteger(exponent) || Math.abs(exponent) > limit) {
      return `group ${index} (${type}) has exponent ${exponent}, allowed are −${limit} to ${limit}`;
    }
    end = start + size;
  }
  return null;
}
