// The tables' numbering and alphabets: single components, and pairs of small values, each with an escape
// (docs/format/wtc-codec.md, "Symbols"). Does not know probabilities or bits.

import { CLASS_MAX, CLASS_MIN } from './classes.ts';

/** Components of a class up to this are coded two at a time. */
export const PAIR_CLASS_MAX = 2;
/** Pairs of a class up to this reach ±2, those above ±3. */
export const SHORT_PAIR_CLASS_MAX = -2;
/** Singles of a higher class take the table of a lower one, octave by octave, and carry their low bits raw. */
export const SINGLE_CLASS_MAX = 10;

export const SINGLE_TABLES = SINGLE_CLASS_MAX - CLASS_MIN + 1;
const PAIR_TABLES = PAIR_CLASS_MAX - CLASS_MIN + 1;
/** Table t < SINGLE_TABLES codes singles of class t + CLASS_MIN, the next PAIR_TABLES code pairs likewise. */
export const TABLES = SINGLE_TABLES + PAIR_TABLES;

/** Entries of a table in all arrays: entry = table · ENTRY_STRIDE + symbol. */
export const ENTRY_STRIDE = 64;

/** Singles: symbol q + SINGLE_REACH for |q| ≤ SINGLE_REACH, then the escape. */
export const SINGLE_REACH = 24;
export const SINGLE_ESCAPE = 2 * SINGLE_REACH + 1;

/** An escaped magnitude may exceed SINGLE_REACH by 16 bits. */
export const MAX_EXCESS = 0xffff;

/** Pairs (a, b) with reach r: symbol (2r + 1) · (a + r) + b + r, then the escape. */
export function pairReach(scaleClass: number): number {
  return scaleClass <= SHORT_PAIR_CLASS_MAX ? 2 : 3;
}

/** Symbols of a table, the escape included. */
export function symbolCount(table: number): number {
  if (table < SINGLE_TABLES) return SINGLE_ESCAPE + 1;
  return (2 * pairReach(table - SINGLE_TABLES + CLASS_MIN) + 1) ** 2 + 1;
}

/** A class as tables know it. */
export function clampClass(scaleClass: number): number {
  return scaleClass < CLASS_MIN ? CLASS_MIN : scaleClass > CLASS_MAX ? CLASS_MAX : scaleClass;
}

/** Raw low bits of a single of a clamped class: 0 up to SINGLE_CLASS_MAX, then one more every octave. */
export function rawBitsOf(scaleClass: number): number {
  return scaleClass <= SINGLE_CLASS_MAX ? 0 : (scaleClass - SINGLE_CLASS_MAX + 3) >> 2;
}
