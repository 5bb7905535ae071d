// What both directions' loops are written with: expressions of WebAssembly's text format, and the parts that both compute
// alike. Does not know loops.

import { CLASS_MAX, CLASS_MIN, SHIFT_PRIOR, SHIFT_RATIOS } from '../classes.ts';
import { SINGLE_CLASS_MAX } from '../symbols.ts';
import { LANE } from './layout.ts';

export const get = (name: string): string => `(local.get $${name})`;
export const i32 = (value: number): string => `(i32.const ${value})`;
export const set = (name: string, value: string): string => `(local.set $${name} ${value})`;
export const add = (a: string, b: string): string => `(i32.add ${a} ${b})`;
export const sub = (a: string, b: string): string => `(i32.sub ${a} ${b})`;
export const field = (name: keyof typeof LANE): string => `(i32.load offset=${LANE[name]} ${get('lane')})`;
export const setField = (name: keyof typeof LANE, value: string): string =>
  `(i32.store offset=${LANE[name]} ${get('lane')} ${value})`;
export const absolute = (name: string): string => {
  const sign = `(i32.shr_s ${get(name)} ${i32(31)})`;
  return sub(`(i32.xor ${get(name)} ${sign})`, sign);
};

const ratioAtLeast = (ratio: number): string =>
  `(i64.ge_s ${get('scaled')} (i64.mul ${get('base')} (i64.const ${ratio})))`;
const ratioBelow = (ratio: number): string =>
  `(i64.lt_s ${get('scaled')} (i64.mul ${get('base')} (i64.const ${ratio})))`;
/** Class shift of the magnitudes that setRatio took, as an expression. */
export const classShift = sub(
  add(ratioAtLeast(SHIFT_RATIOS.one), ratioAtLeast(SHIFT_RATIOS.two)),
  add(ratioBelow(SHIFT_RATIOS.minusOne), ratioBelow(SHIFT_RATIOS.minusTwo)),
);
/** $scaled and $base ← observed and expected magnitudes, as classShift compares them. */
export const setRatio = (observed: string, expected: string): string => `
  (local.set $scaled (i64.mul (i64.extend_i32_s ${add(observed, i32(SHIFT_PRIOR))}) (i64.const 1024)))
  (local.set $base (i64.extend_i32_s ${add(expected, i32(SHIFT_PRIOR))}))`;

/** Clamps a class in $c to what tables know. */
export const clampClass = `
  (if (i32.lt_s ${get('c')} ${i32(CLASS_MIN)}) (then ${set('c', i32(CLASS_MIN))}))
  (if (i32.gt_s ${get('c')} ${i32(CLASS_MAX)}) (then ${set('c', i32(CLASS_MAX))}))
  (if (i32.gt_s ${get('c')} ${i32(SINGLE_CLASS_MAX)})
    (then ${set('n', `(i32.shr_s (i32.sub ${get('c')} ${i32(SINGLE_CLASS_MAX - 3)}) ${i32(2)})`)}))`;

/** Weight of a base class, clamped. */
export const weightOf = (base: string): string => `(call $weight ${base})`;
