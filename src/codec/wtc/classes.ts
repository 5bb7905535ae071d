// Scale classes: how σ, step and a token's step multiplier choose a coding table, in integers throughout, so that no
// machine can choose another table than the writer's (docs/format/wtc-codec.md, "Classes"). Does not know tables.

import { invariant } from '../../base/errors.ts';

/** σ and step are known as whole numbers of 1/256 octave: scale index = round(256 · log2 σ). */
export const SCALE_UNITS = 256;

/** A class is a quarter octave of σ / (Δ · m). Classes below this are never coded. */
export const CLASS_MIN = -12;

/** Higher classes (σ beyond 23 000 steps) are coded as this one. */
export const CLASS_MAX = 58;

/** A step multiplier m = 2^(tokenClass / 2), tokenClass in [TOKEN_CLASS_MIN, TOKEN_CLASS_MIN + TOKEN_CLASSES). */
export const TOKEN_CLASS_MIN = -8;
export const TOKEN_CLASSES = 16;

/** Components are coded in groups of this many. */
export const GROUP_SIZE = 4;

/** Scale indices lie in [−SCALE_INDEX_LIMIT, SCALE_INDEX_LIMIT]: σ within 2^±64. */
export const SCALE_INDEX_LIMIT = 64 * SCALE_UNITS;

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

/** Step multiplier of a token class. */
export function stepMultiplier(tokenClass: number): number {
  return 2 ** (tokenClass / 2);
}

/**
 * Class of every component for a token of class 0: ⌊(scale − step + 32) / 64⌋. A token of class c is coded with
 * class − 2c, clamped into [CLASS_MIN − 1, CLASS_MAX]. Returns i16[rank].
 */
export function componentClasses(scales: Int16Array, rank: number, stepIndex: number): Int16Array {
  const classes = new Int16Array(rank);
  for (let i = 0; i < rank; i++) classes[i] = (scales[i]! - stepIndex + 32) >> 6;
  return classes;
}

/** Class of every group of four components, from the mean of their scale indices: ⌊(sum − 4 · step + 128) / 256⌋. */
export function groupClasses(scales: Int16Array, rank: number, stepIndex: number): Int16Array {
  const classes = new Int16Array(rank / GROUP_SIZE);
  for (let g = 0, i = 0; g < classes.length; g++, i += GROUP_SIZE) {
    const sum = scales[i]! + scales[i + 1]! + scales[i + 2]! + scales[i + 3]!;
    classes[g] = (sum - GROUP_SIZE * stepIndex + 128) >> 8;
  }
  return classes;
}

/** How many groups a token of class `tokenClass` codes: those whose class is at least `cut`. They come first. */
export function codedGroups(groups: Int16Array, tokenClass: number, cut: number): number {
  const bound = cut + 2 * tokenClass;
  let low = 0;
  let high = groups.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (groups[middle]! >= bound) low = middle + 1;
    else high = middle;
  }
  return low;
}
