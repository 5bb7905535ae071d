// Scale classes: how σ, step, a token's step multiplier and its magnitudes so far choose a coding table; in integers
// throughout, so that no machine can choose another table than the writer's (docs/format/wtc-codec.md, "Classes").
// Does not know tables.

import { invariant } from '../../base/errors.ts';

/** σ and step are known as whole numbers of 1/256 octave: scale index = round(256 · log2 σ). */
export const SCALE_UNITS = 256;

/** Scale indices lie in [−SCALE_INDEX_LIMIT, SCALE_INDEX_LIMIT]: σ within 2^±64. */
export const SCALE_INDEX_LIMIT = 64 * SCALE_UNITS;

/** A class is a quarter octave of σ / (Δ · m). Lower ones are coded as this one. */
export const CLASS_MIN = -10;

/** Higher classes (σ beyond 23 000 steps) are coded as this one. */
export const CLASS_MAX = 58;

/** A step multiplier m = 2^(tokenClass / 2), tokenClass in [TOKEN_CLASS_MIN, TOKEN_CLASS_MIN + TOKEN_CLASSES). */
export const TOKEN_CLASS_MIN = -8;
export const TOKEN_CLASSES = 16;

/** After every so many components a token's class shift is set anew from its magnitudes so far. */
export const BLOCK_COMPONENTS = 32;

/** Weighted magnitudes, observed and expected, that every token starts with: keeps early shifts small. */
export const SHIFT_PRIOR = 256;

/** Ratios of observed to expected, in 1/1024, at which the shift turns −1, −2 (below) and 1, 2 (at or above). */
export const SHIFT_RATIOS = { minusTwo: 790, minusOne: 939, one: 1117, two: 1328 } as const;

/**
 * Scale indices of standard deviations, i16[rank], made non-increasing (a component never ranks above its
 * predecessor). σ below 2^-64 counts as 2^-64. `deviations` f32[rank], finite, ≥ 0.
 */
export function scaleIndices(deviations: Float32Array): Int16Array {
  const indices = new Int16Array(deviations.length);
  let last = SCALE_INDEX_LIMIT;
  for (let i = 0; i < indices.length; i++) {
    const deviation = deviations[i]!;
    invariant(Number.isFinite(deviation) && deviation >= 0, `standard deviation ${i} is ${deviation}`);
    const index = Math.round(SCALE_UNITS * Math.log2(Math.max(deviation, 2 ** -64)));
    last = Math.max(-SCALE_INDEX_LIMIT, Math.min(last, index));
    indices[i] = last;
  }
  return indices;
}

/** Δ of a step index: 2^(stepIndex / 256). */
export function stepOf(stepIndex: number): number {
  return 2 ** (stepIndex / SCALE_UNITS);
}

/** The step index nearest to a step > 0. */
export function stepIndexOf(step: number): number {
  return Math.round(SCALE_UNITS * Math.log2(step));
}

/** The step Δ · m of a token, rounded to f32: 2^(stepIndex / 256 + tokenClass / 2). */
export function tokenStep(stepIndex: number, tokenClass: number): number {
  return Math.fround(2 ** (stepIndex / SCALE_UNITS + tokenClass / 2));
}

/**
 * Class of every component for a token of class 0: ⌊(scale − step + 32) / 64⌋, i16[rank]. In a token of class c it is
 * less by 2c.
 */
export function componentClasses(scales: Int16Array, rank: number, stepIndex: number): Int16Array {
  const classes = new Int16Array(rank);
  for (let i = 0; i < rank; i++) classes[i] = (scales[i]! - stepIndex + 32) >> 6;
  return classes;
}

/** Class of every pair of components, from both scales: ⌊(sum − 2 · step + 64) / 128⌋, i16[rank / 2]. */
export function pairClasses(scales: Int16Array, rank: number, stepIndex: number): Int16Array {
  const classes = new Int16Array(rank / 2);
  for (let u = 0; u < classes.length; u++) {
    classes[u] = (scales[2 * u]! + scales[2 * u + 1]! - 2 * stepIndex + 64) >> 7;
  }
  return classes;
}

/** i32[pairs]: of every pair the first after it that is of another class. */
export function runEnds(pairs: Int16Array): Int32Array {
  const ends = new Int32Array(pairs.length);
  for (let u = pairs.length - 1, end = u + 1; u >= 0; u--) {
    if (pairs[u] !== pairs[u + 1]) end = u + 1;
    ends[u] = end;
  }
  return ends;
}

/** How many pairs a token of class `tokenClass` codes: those whose class is at least `cut`. They come first. */
export function codedPairs(pairs: Int16Array, tokenClass: number, cut: number): number {
  const bound = cut + 2 * tokenClass;
  let low = 0;
  let high = pairs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pairs[middle]! >= bound) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The shift of a token's classes, −2 to 2, from its weighted magnitudes so far and what was expected of them: tokens
 * differ in scale, and the first components show it. Products stay below 2^53.
 */
export function classShift(observed: number, expected: number): number {
  const scaled = (observed + SHIFT_PRIOR) * 1024;
  const base = expected + SHIFT_PRIOR;
  if (scaled >= base * SHIFT_RATIOS.one) return scaled >= base * SHIFT_RATIOS.two ? 2 : 1;
  if (scaled < base * SHIFT_RATIOS.minusOne) return scaled < base * SHIFT_RATIOS.minusTwo ? -2 : -1;
  return 0;
}
