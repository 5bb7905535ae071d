// The three alphabets: single components, pairs and quads of small values, each with an escape
// (docs/format/wtc-codec.md, "Symbols"). Does not know probabilities or bits.

import { CLASS_MIN } from './classes.ts';

/** Groups of a class up to this are coded as one quad; a quad costs one coding step for four components. */
export const QUAD_CLASS_MAX = -5;
/** Groups of a class above QUAD_CLASS_MAX and up to this are coded as two pairs. */
export const PAIR_CLASS_MAX = 1;
/** Classes above this take the table of a lower class, octave by octave, and carry the low bits raw. */
export const SINGLE_CLASS_MAX = 10;

export const SINGLE_CLASSES = SINGLE_CLASS_MAX - CLASS_MIN + 1;
export const PAIR_CLASSES = PAIR_CLASS_MAX - QUAD_CLASS_MAX;
export const QUAD_CLASSES = QUAD_CLASS_MAX - CLASS_MIN + 1;

/** Singles: symbol q + SINGLE_REACH for |q| ≤ SINGLE_REACH, then the escape. */
export const SINGLE_REACH = 24;
export const SINGLE_ESCAPE = 2 * SINGLE_REACH + 1;
export const SINGLE_SYMBOLS = SINGLE_ESCAPE + 1;

/** Largest magnitude that has a place in a pair or a quad. */
export const PATTERN_REACH = 2;

/** Pairs (a, b): symbol 5 · (a + 2) + b + 2, then the escape. */
export const PAIR_ESCAPE = 25;
export const PAIR_SYMBOLS = PAIR_ESCAPE + 1;
export const PAIR_ZERO = 12;

/**
 * Quads: 0 all zero; 1-8 one ±1; 9-32 two ±1; 33-40 one ±2; then the escape. Within a kind positions rise from the
 * first component on and + comes before −.
 */
export const QUAD_ESCAPE = 41;
export const QUAD_SYMBOLS = QUAD_ESCAPE + 1;

/** i8[QUAD_ESCAPE, 4]: the values of each quad symbol but the escape. */
export const QUAD_VALUES: Int8Array = listQuads();

/** u8[625]: symbol of (a, b, c, d), all within ±2, at 125 · (a + 2) + 25 · (b + 2) + 5 · (c + 2) + d + 2. */
export const QUAD_SYMBOL_OF: Uint8Array = indexQuads();

function listQuads(): Int8Array {
  const quads: number[][] = [[0, 0, 0, 0]];
  const add = (...entries: readonly (readonly [position: number, value: number])[]): void => {
    const quad = [0, 0, 0, 0];
    for (const [position, value] of entries) quad[position] = value;
    quads.push(quad);
  };
  for (let i = 0; i < 4; i++) for (const a of [1, -1]) add([i, a]);
  for (let i = 0; i < 4; i++) {
    for (let j = i + 1; j < 4; j++) for (const a of [1, -1]) for (const b of [1, -1]) add([i, a], [j, b]);
  }
  for (let i = 0; i < 4; i++) for (const a of [2, -2]) add([i, a]);
  return Int8Array.from(quads.flat());
}

function indexQuads(): Uint8Array {
  const symbols = new Uint8Array(625).fill(QUAD_ESCAPE);
  for (let s = 0; s < QUAD_ESCAPE; s++) {
    let index = 0;
    for (let i = 0; i < 4; i++) index = index * 5 + QUAD_VALUES[4 * s + i]! + PATTERN_REACH;
    symbols[index] = s;
  }
  return symbols;
}

/** Raw low bits of a single of this class: 0 up to SINGLE_CLASS_MAX, then one more every octave. */
export function rawBitsOf(scaleClass: number): number {
  return scaleClass <= SINGLE_CLASS_MAX ? 0 : (scaleClass - SINGLE_CLASS_MAX + 3) >> 2;
}
