// A family made ready for coding: decoding slots, encoding constants and the values that symbols stand for, all addressed
// by entry = table · ENTRY_STRIDE + symbol. Does not know plans or chunks.

import { PROBABILITY_SCALE, createEncoderTables, fillEncoder, fillSlots } from '../entropy/rans.ts';
import type { EncoderTables } from '../entropy/rans.ts';
import { CLASS_MIN } from './classes.ts';
import type { TableFamily } from './family.ts';
import { CELLS } from './family.ts';
import { ENTRY_STRIDE, SINGLE_ESCAPE, SINGLE_REACH, SINGLE_TABLES, TABLES, pairReach, symbolCount } from './symbols.ts';

export interface CoderTables {
  /** i32[TABLES, PROBABILITY_SCALE], see fillSlots. */
  readonly slots: Int32Array;
  readonly encoder: EncoderTables;
  /** f32[TABLES · ENTRY_STRIDE, 2]: reconstruction in steps of a pair's components, or of a single and 0. */
  readonly values: Float32Array;
  /** u8[TABLES · ENTRY_STRIDE]: |a| + |b| of a pair, |q| of a single, SINGLE_REACH + 1 of a single's escape. */
  readonly magnitudes: Uint8Array;
}

const prepared = new WeakMap<TableFamily, CoderTables>();

/** Prepares a family once; later calls return the same tables (0.6 MB). */
export function prepareTables(family: TableFamily): CoderTables {
  const known = prepared.get(family);
  if (known !== undefined) return known;
  const slots = new Int32Array(TABLES * PROBABILITY_SCALE);
  const encoder = createEncoderTables(TABLES * ENTRY_STRIDE);
  const values = new Float32Array(TABLES * ENTRY_STRIDE * 2);
  const magnitudes = new Uint8Array(TABLES * ENTRY_STRIDE);
  for (let table = 0; table < TABLES; table++) {
    const first = table * ENTRY_STRIDE;
    const frequencies = family.frequencies.subarray(first, first + symbolCount(table));
    fillSlots(frequencies, slots, table * PROBABILITY_SCALE);
    fillEncoder(frequencies, encoder, first);
    if (table < SINGLE_TABLES) {
      for (let q = -SINGLE_REACH; q <= SINGLE_REACH; q++) {
        values[2 * (first + q + SINGLE_REACH)] = reconstruct(q, family.centroids, table);
        magnitudes[first + q + SINGLE_REACH] = Math.abs(q);
      }
      magnitudes[first + SINGLE_ESCAPE] = SINGLE_REACH + 1;
      continue;
    }
    const row = table - SINGLE_TABLES;
    const reach = pairReach(row + CLASS_MIN);
    let entry = first;
    for (let a = -reach; a <= reach; a++) {
      for (let b = -reach; b <= reach; b++, entry++) {
        values[2 * entry] = reconstruct(a, family.centroids, row);
        values[2 * entry + 1] = reconstruct(b, family.centroids, row);
        magnitudes[entry] = Math.abs(a) + Math.abs(b);
      }
    }
  }
  const tables = Object.freeze({ slots, encoder, values, magnitudes });
  prepared.set(family, tables);
  return tables;
}

/** What integer k of a class stands for, in steps: sign · f32(|k| + centroid). `row` = class − CLASS_MIN. */
export function reconstruct(k: number, centroids: Float32Array, row: number): number {
  if (k === 0) return 0;
  const magnitude = Math.abs(k);
  const value = Math.fround(magnitude + centroids[row * CELLS + Math.min(magnitude, CELLS) - 1]!);
  return k < 0 ? -value : value;
}
