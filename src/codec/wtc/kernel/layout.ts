// Where things lie in a kernel's memory. Tables of one family come first and stay; what belongs to a chunk follows.
// Addresses in bytes. Known to decode-text.ts and encode-text.ts, which compute with them, and kernel.ts, which fills them.

import { CELLS } from '../family.ts';
import { MAX_LANES } from '../frame.ts';
import { ENTRY_STRIDE, TABLES } from '../symbols.ts';
import { PROBABILITY_SCALE } from '../../entropy/rans.ts';

/**
 * Per table: u8[PROBABILITY_SCALE], the symbol of every slot (bytes, so that the tables in use stay in the nearest cache),
 * then per symbol, at TABLE_ENTRIES, all that it brings: u16 frequency, u16 start, f32[2] values in steps, i32 magnitude
 * (PAIR_ESCAPE_MARK for the escape of a pair). Both lie in one place, so that a walk keeps one address for a table.
 */
export const TABLE_ENTRIES = PROBABILITY_SCALE;
export const ENTRY_BYTES = 16;
export const ENTRY = { frequency: 0, start: 2, values: 4, magnitude: 12 } as const;
export const TABLE_BYTES = TABLE_ENTRIES + ENTRY_BYTES * ENTRY_STRIDE;
/** i32[64]: what a magnitude counts, by base class from CLASS_MIN on. */
export const WEIGHTS = TABLE_BYTES * TABLES;
/** f32[SINGLE_TABLES · CELLS] */
export const CENTROIDS = WEIGHTS + 4 * 64;
/** i32[SINGLE_TABLES · CELLS] */
export const DECISIONS = CENTROIDS + 4 * 64;
/** Per entry what fillEncoder writes. Then the same for token classes. */
export const ENCODER = DECISIONS + 4 * 64;
export const ENCODER_BYTES = 16;
export const CLASS_ENCODER = ENCODER + ENCODER_BYTES * TABLES * ENTRY_STRIDE;
/** One record per lane, see LANE; lanes are decoded two at a time. */
export const LANES = CLASS_ENCODER + ENCODER_BYTES * 16;
export const LANE_BYTES = 64;
/** First byte of what belongs to a chunk. */
export const CHUNK = LANES + LANE_BYTES * (MAX_LANES + (MAX_LANES % 2));

/** Fields of a lane's record. */
export const LANE = {
  state: 0,
  /** Address of the next word. */
  position: 4,
  pairCount: 8,
  /** Twice the token's class, and that less the token's shift. */
  tokenShift: 12,
  shift: 16,
  /** f32 */
  step: 20,
  observed: 24,
  /** Address of the token class's expected magnitudes. */
  expected: 28,
  /** Address of the token's row. */
  row: 32,
} as const;

/** Stands for the magnitude of a pair's escape: no sum of two magnitudes is as large. */
export const PAIR_ESCAPE_MARK = 255;

export const CENTROID_ROW_BYTES = 4 * CELLS;
