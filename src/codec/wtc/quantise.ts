// Coefficients of one token → integers: one step, thresholds by class that weigh error against code length
// (docs/format/wtc-codec.md, "How the encoder chooses integers"). Does not know tables of frequencies or bytes.

import { CLASS_MAX, CLASS_MIN, GROUP_SIZE } from './classes.ts';
import { CELLS } from './family.ts';
import type { WtcPlan } from './plan.ts';
import { PAIR_CLASS_MAX, SINGLE_CLASS_MAX, SINGLE_REACH, rawBitsOf } from './symbols.ts';

/** Largest excess over SINGLE_REACH that the escape can carry: 16 bits. */
export const MAX_EXCESS = 0xffff;

/** Class of one component coded by itself, brought into [CLASS_MIN, CLASS_MAX]. */
export function singleClass(scaleClass: number): number {
  return scaleClass < CLASS_MIN ? CLASS_MIN : scaleClass > CLASS_MAX ? CLASS_MAX : scaleClass;
}

/**
 * Fills `integers` i32[4 · groups] for the token whose coefficients begin at `offset`. `shift` is twice its token class,
 * `step` its own step Δ · m. Magnitudes saturate where the escape ends. Coefficients must be finite.
 */
export function quantiseToken(
  coefficients: Float32Array,
  offset: number,
  groups: number,
  shift: number,
  step: number,
  plan: WtcPlan,
  integers: Int32Array,
): void {
  const { groupClasses, componentClasses } = plan;
  const { thresholds } = plan.family;
  const inverse = 1 / step;
  for (let g = 0, i = 0; g < groups; g++) {
    const groupClass = groupClasses[g]! - shift;
    if (groupClass > PAIR_CLASS_MAX) {
      for (const end = i + GROUP_SIZE; i < end; i++) {
        const scaleClass = singleClass(componentClasses[i]! - shift);
        const row = Math.min(scaleClass, SINGLE_CLASS_MAX) - CLASS_MIN;
        const limit = (SINGLE_REACH + MAX_EXCESS - 1) << rawBitsOf(scaleClass);
        integers[i] = quantise(coefficients[offset + i]! * inverse, thresholds, row * CELLS, limit);
      }
      continue;
    }
    const at = (groupClass - CLASS_MIN) * CELLS;
    const zeroBelow = thresholds[at]! * step;
    const from = offset + i;
    const a = coefficients[from]!;
    const b = coefficients[from + 1]!;
    const c = coefficients[from + 2]!;
    const d = coefficients[from + 3]!;
    if (Math.abs(a) < zeroBelow && Math.abs(b) < zeroBelow && Math.abs(c) < zeroBelow && Math.abs(d) < zeroBelow) {
      integers[i] = integers[i + 1] = integers[i + 2] = integers[i + 3] = 0;
    } else {
      const limit = SINGLE_REACH + MAX_EXCESS - 1;
      integers[i] = quantise(a * inverse, thresholds, at, limit);
      integers[i + 1] = quantise(b * inverse, thresholds, at, limit);
      integers[i + 2] = quantise(c * inverse, thresholds, at, limit);
      integers[i + 3] = quantise(d * inverse, thresholds, at, limit);
    }
    i += GROUP_SIZE;
  }
}

/** Integer of u = c / step with the thresholds at `at`. */
function quantise(u: number, thresholds: Float32Array, at: number, limit: number): number {
  const magnitude = u < 0 ? -u : u;
  if (magnitude < thresholds[at]!) return 0;
  let k = 1;
  if (magnitude >= thresholds[at + 1]!) {
    const rounded = magnitude - thresholds[at + 2]! + 1;
    k = rounded >= limit ? limit : rounded < 2 ? 2 : rounded | 0;
  }
  return u < 0 ? -k : k;
}
