// A family made ready for coding: decoding slots, encoding constants and the values that symbols stand for, laid out so
// that one index (table offset) leads to each. Does not know plans or chunks.

import { PROBABILITY_SCALE, createEncoderTables, fillEncoder, fillSlots } from '../entropy/rans.ts';
import type { EncoderTables } from '../entropy/rans.ts';
import { CLASS_MIN } from './classes.ts';
import type { TableFamily } from './family.ts';
import { CELLS } from './family.ts';
import {
  PAIR_CLASSES,
  PAIR_ESCAPE,
  PAIR_SYMBOLS,
  PATTERN_REACH,
  QUAD_CLASSES,
  QUAD_CLASS_MAX,
  QUAD_ESCAPE,
  QUAD_SYMBOLS,
  QUAD_VALUES,
  SINGLE_CLASSES,
  SINGLE_REACH,
  SINGLE_SYMBOLS,
} from './symbols.ts';

/** Entries a table has in the encoder's arrays; a power of two ≥ all alphabets. */
export const ENTRY_STRIDE = 64;

/** Index of the first table of each kind: table = first + class − (lowest class of the kind). */
export const FIRST_SINGLE = 0;
export const FIRST_PAIR = SINGLE_CLASSES;
export const FIRST_QUAD = SINGLE_CLASSES + PAIR_CLASSES;
export const TABLES = FIRST_QUAD + QUAD_CLASSES;
export const LOWEST_PAIR_CLASS = QUAD_CLASS_MAX + 1;

export interface CoderTables {
  /** i32[TABLES, PROBABILITY_SCALE], see fillSlots. */
  readonly slots: Int32Array;
  readonly encoder: EncoderTables;
  /** f32[SINGLE_CLASSES, ENTRY_STRIDE]: reconstruction of q in steps; 0 for the escape. */
  readonly singleValues: Float32Array;
  /** f32[PAIR_CLASSES, ENTRY_STRIDE, 2] */
  readonly pairValues: Float32Array;
  /** f32[QUAD_CLASSES, ENTRY_STRIDE, 4] */
  readonly quadValues: Float32Array;
}

const prepared = new WeakMap<TableFamily, CoderTables>();

/** Prepares a family once; later calls return the same tables (0.6 MB). */
export function prepareTables(family: TableFamily): CoderTables {
  const known = prepared.get(family);
  if (known !== undefined) return known;
  const slots = new Int32Array(TABLES * PROBABILITY_SCALE);
  const encoder = createEncoderTables(TABLES * ENTRY_STRIDE);
  const fill = (frequencies: Uint16Array, symbols: number, first: number): void => {
    for (let row = 0; row * symbols < frequencies.length; row++) {
      const table = frequencies.subarray(row * symbols, (row + 1) * symbols);
      fillSlots(table, slots, (first + row) * PROBABILITY_SCALE);
      fillEncoder(table, encoder, (first + row) * ENTRY_STRIDE);
    }
  };
  fill(family.single, SINGLE_SYMBOLS, FIRST_SINGLE);
  fill(family.pair, PAIR_SYMBOLS, FIRST_PAIR);
  fill(family.quad, QUAD_SYMBOLS, FIRST_QUAD);
  const tables = Object.freeze({ slots, encoder, ...values(family) });
  prepared.set(family, tables);
  return tables;
}

/** What integer k of a class stands for, in steps: sign · (|k| + centroid). `row` = class − CLASS_MIN. */
export function reconstruct(k: number, centroids: Float32Array, row: number): number {
  if (k === 0) return 0;
  const magnitude = Math.abs(k);
  const value = magnitude + centroids[row * CELLS + Math.min(magnitude, CELLS) - 1]!;
  return k < 0 ? -value : value;
}

function values({ centroids }: TableFamily): Pick<CoderTables, 'singleValues' | 'pairValues' | 'quadValues'> {
  const singleValues = new Float32Array(SINGLE_CLASSES * ENTRY_STRIDE);
  const pairValues = new Float32Array(PAIR_CLASSES * ENTRY_STRIDE * 2);
  const quadValues = new Float32Array(QUAD_CLASSES * ENTRY_STRIDE * 4);
  for (let row = 0; row < SINGLE_CLASSES; row++) {
    for (let q = -SINGLE_REACH; q <= SINGLE_REACH; q++) {
      singleValues[row * ENTRY_STRIDE + q + SINGLE_REACH] = reconstruct(q, centroids, row);
    }
  }
  const side = 2 * PATTERN_REACH + 1;
  for (let row = 0; row < PAIR_CLASSES; row++) {
    const centroidRow = row + LOWEST_PAIR_CLASS - CLASS_MIN;
    for (let s = 0; s < PAIR_ESCAPE; s++) {
      const at = (row * ENTRY_STRIDE + s) * 2;
      pairValues[at] = reconstruct(Math.floor(s / side) - PATTERN_REACH, centroids, centroidRow);
      pairValues[at + 1] = reconstruct((s % side) - PATTERN_REACH, centroids, centroidRow);
    }
  }
  for (let row = 0; row < QUAD_CLASSES; row++) {
    for (let i = 0; i < QUAD_ESCAPE * 4; i++) {
      quadValues[row * ENTRY_STRIDE * 4 + i] = reconstruct(QUAD_VALUES[i]!, centroids, row);
    }
  }
  return { singleValues, pairValues, quadValues };
}
