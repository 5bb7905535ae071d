// A family of static tables: frequencies of every class and alphabet, cell centroids and decision thresholds. Trained
// once per model and stream, used at every step. Packs into one f32 tensor of a profile (docs/format/wtc-codec.md).
// Does not know streams, plans or training.

import { KvtcError } from '../../base/errors.ts';
import { areFrequencies } from '../entropy/rans.ts';
import { PAIR_CLASSES, PAIR_SYMBOLS, QUAD_CLASSES, QUAD_SYMBOLS, SINGLE_CLASSES, SINGLE_SYMBOLS } from './symbols.ts';

/** Cells with a centroid of their own: |k| = 1, 2 and ≥ 3. Thresholds likewise: 0|1, 1|2 and k|k+1 above. */
export const CELLS = 3;

export interface TableFamily {
  /** u16[SINGLE_CLASSES, SINGLE_SYMBOLS] */
  readonly single: Uint16Array;
  /** u16[PAIR_CLASSES, PAIR_SYMBOLS] */
  readonly pair: Uint16Array;
  /** u16[QUAD_CLASSES, QUAD_SYMBOLS] */
  readonly quad: Uint16Array;
  /** f32[SINGLE_CLASSES, CELLS]: |value| / step − |k|. */
  readonly centroids: Float32Array;
  /** f32[SINGLE_CLASSES, CELLS]: |c| / step where k turns 1, turns 2, and what to add to k to reach k + 1 above. */
  readonly thresholds: Float32Array;
}

/** Parts in their order within the packed tensor. */
const PARTS = [
  { name: 'single', rows: SINGLE_CLASSES, columns: SINGLE_SYMBOLS },
  { name: 'pair', rows: PAIR_CLASSES, columns: PAIR_SYMBOLS },
  { name: 'quad', rows: QUAD_CLASSES, columns: QUAD_SYMBOLS },
  { name: 'centroids', rows: SINGLE_CLASSES, columns: CELLS },
  { name: 'thresholds', rows: SINGLE_CLASSES, columns: CELLS },
] as const;

/** Values of a packed family. */
export const FAMILY_VALUES = PARTS.reduce((sum, { rows, columns }) => sum + rows * columns, 0);

/** A family as one tensor f32[FAMILY_VALUES]; frequencies are whole numbers up to 4 096, exact in f32. */
export function packFamily(family: TableFamily): Float32Array {
  const packed = new Float32Array(FAMILY_VALUES);
  let at = 0;
  for (const { name, rows, columns } of PARTS) {
    packed.set(family[name], at);
    at += rows * columns;
  }
  return packed;
}

/** Reads a packed family and checks it whole. Throws KVTC_PROFILE_MALFORMED; `name` is the tensor's, for the message. */
export function unpackFamily(packed: Float32Array, name: string): TableFamily {
  if (packed.length !== FAMILY_VALUES) {
    throw malformed(name, `has ${packed.length} values, expected ${FAMILY_VALUES}`);
  }
  let at = 0;
  const part = (index: number): Float32Array => {
    const { rows, columns } = PARTS[index] as (typeof PARTS)[number];
    return packed.slice(at, (at += rows * columns));
  };
  const frequencies = (index: number): Uint16Array => {
    const values = part(index);
    const { name: table, rows, columns } = PARTS[index] as (typeof PARTS)[number];
    for (let row = 0; row < rows; row++) {
      if (!areFrequencies(values.subarray(row * columns, (row + 1) * columns))) {
        throw malformed(name, `${table} table ${row} is no distribution over 4096`);
      }
    }
    return Uint16Array.from(values);
  };
  const single = frequencies(0);
  const pair = frequencies(1);
  const quad = frequencies(2);
  const centroids = part(3);
  if (!centroids.every((value) => value >= -0.5 && value <= 0.5)) {
    throw malformed(name, 'a centroid lies outside [−0.5, 0.5]');
  }
  const thresholds = part(4);
  for (let row = 0; row < SINGLE_CLASSES; row++) {
    const [one, two, step] = thresholds.subarray(row * CELLS) as unknown as [number, number, number];
    if (!(one >= 0.5 && one < two && two <= 3 && step >= 0 && step < 1)) {
      throw malformed(name, `thresholds ${one}, ${two}, ${step} of class row ${row} are out of order`);
    }
  }
  return Object.freeze({ single, pair, quad, centroids, thresholds });
}

function malformed(name: string, problem: string): KvtcError {
  return new KvtcError('KVTC_PROFILE_MALFORMED', `the profile's coding tables (${name}) are invalid: it ${problem}`, {
    tensor: name,
  });
}
