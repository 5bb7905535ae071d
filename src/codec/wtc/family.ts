// A family of static tables: frequencies, cell centroids, decision thresholds and expected magnitudes, by class. Trained
// once per model and stream, used at every step. Packs into one f32 tensor of a profile (docs/format/wtc-codec.md).
// Does not know streams, plans or training.

import { KvtcError } from '../../base/errors.ts';
import { areFrequencies } from '../entropy/rans.ts';
import { SCALE_INDEX_LIMIT } from './classes.ts';
import { ENTRY_STRIDE, SINGLE_TABLES, TABLES, symbolCount } from './symbols.ts';

/** Cells with a centroid of their own: |k| = 1, 2 and ≥ 3. Thresholds likewise: 0|1, 1|2 and k|k+1 above. */
export const CELLS = 3;

/** Largest weight and expectation of a magnitude: sums over 2^20 components of magnitude 25 stay below 2^31. */
const MAGNITUDE_LIMIT = 64;

export interface TableFamily {
  /** u16[TABLES, ENTRY_STRIDE]; entries past a table's alphabet are 0. */
  readonly frequencies: Uint16Array;
  /** f32[SINGLE_TABLES, CELLS]: |value| / step − |k|. */
  readonly centroids: Float32Array;
  /** f32[SINGLE_TABLES, CELLS]: |c| / step where k turns 1, turns 2, and what to add to k to reach k + 1 above. */
  readonly thresholds: Float32Array;
  /** u16[SINGLE_TABLES]: what one unit of |k| of a component of this class counts in a token's observed magnitude. */
  readonly weights: Uint16Array;
  /** u16[SINGLE_TABLES]: what is expected of a component of this class, in the same units. */
  readonly expectations: Uint16Array;
}

const PARTS = [TABLES * ENTRY_STRIDE, SINGLE_TABLES * CELLS, SINGLE_TABLES * CELLS, SINGLE_TABLES, SINGLE_TABLES];

/** Values of a packed family. */
export const FAMILY_VALUES = PARTS.reduce((sum, values) => sum + values, 0);

/** A family as one tensor f32[FAMILY_VALUES], parts in the order of the interface; integers are exact in f32. */
export function packFamily(family: TableFamily): Float32Array {
  const { frequencies, centroids, thresholds, weights, expectations } = family;
  const packed = new Float32Array(FAMILY_VALUES);
  let at = 0;
  for (const part of [frequencies, centroids, thresholds, weights, expectations]) {
    packed.set(part, at);
    at += part.length;
  }
  return packed;
}

/** Reads a packed family and checks it whole. Throws KVTC_PROFILE_MALFORMED; `name` is the tensor's, for the message. */
export function unpackFamily(packed: Float32Array, name: string): TableFamily {
  if (packed.length !== FAMILY_VALUES) {
    throw malformed(name, `it has ${packed.length} values, expected ${FAMILY_VALUES}`);
  }
  let at = 0;
  const [frequencies, centroids, thresholds, weights, expectations] = PARTS.map((values) =>
    packed.slice(at, (at += values)),
  ) as [Float32Array, Float32Array, Float32Array, Float32Array, Float32Array];
  for (let table = 0; table < TABLES; table++) {
    const row = frequencies.subarray(table * ENTRY_STRIDE, (table + 1) * ENTRY_STRIDE);
    const symbols = symbolCount(table);
    if (!areFrequencies(row.subarray(0, symbols)) || row.subarray(symbols).some((value) => value !== 0)) {
      throw malformed(name, `table ${table} is no distribution of ${symbols} symbols over 4096`);
    }
  }
  if (!centroids.every((value) => value >= -0.5 && value <= 0.5)) {
    throw malformed(name, 'a centroid lies outside [−0.5, 0.5]');
  }
  for (let row = 0; row < SINGLE_TABLES; row++) {
    const [one = 0, two = 0, step = 0] = thresholds.subarray(row * CELLS, (row + 1) * CELLS);
    if (!(one >= 0.5 && one < two && two <= 2 + step && step >= 0 && step <= 1)) {
      throw malformed(name, `thresholds ${one}, ${two}, ${step} of row ${row} are out of order`);
    }
  }
  for (const value of [...weights, ...expectations]) {
    if (!Number.isInteger(value) || value < 0 || value > MAGNITUDE_LIMIT) {
      throw malformed(name, `${value} is no weight or expectation of a magnitude`);
    }
  }
  return Object.freeze({
    frequencies: Uint16Array.from(frequencies),
    centroids,
    thresholds,
    weights: Uint16Array.from(weights),
    expectations: Uint16Array.from(expectations),
  });
}

/**
 * Reads a stream's scales, whole numbers as f32. Throws KVTC_PROFILE_MALFORMED when one is none, lies beyond
 * ±SCALE_INDEX_LIMIT or exceeds its predecessor.
 */
export function unpackScales(packed: Float32Array, name: string): Int16Array {
  packed.forEach((scale, i) => {
    if (Number.isInteger(scale) && Math.abs(scale) <= SCALE_INDEX_LIMIT && !(i > 0 && scale > packed[i - 1]!)) return;
    throw malformed(name, `scale ${i} is ${scale} after ${packed[i - 1]}`);
  });
  return Int16Array.from(packed);
}

function malformed(name: string, problem: string): KvtcError {
  return new KvtcError('KVTC_PROFILE_MALFORMED', `the profile's coding tables (${name}) are invalid: ${problem}`, {
    tensor: name,
  });
}
