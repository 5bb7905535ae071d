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
