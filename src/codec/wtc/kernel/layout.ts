// Where things lie in a kernel's memory. Tables of one family come first and stay; what belongs to a chunk follows.
// Addresses in bytes. Known to kernel-text.ts, which computes with them, and kernel.ts, which fills them.

import { BLOCK_COMPONENTS } from '../classes.ts';
import { CELLS } from '../family.ts';
import { MAX_LANES } from '../frame.ts';
import { ENTRY_STRIDE, TABLES } from '../symbols.ts';
import { PROBABILITY_SCALE } from '../../entropy/rans.ts';

/** i32[TABLES, PROBABILITY_SCALE] */
export const SLOTS = 0;
/** f32[TABLES · ENTRY_STRIDE, 2] */
export const VALUES = SLOTS + 4 * TABLES * PROBABILITY_SCALE;
/** u8[TABLES · ENTRY_STRIDE]; the escape of a pair is PAIR_ESCAPE_MARK. */
export const MAGNITUDES = VALUES + 8 * TABLES * ENTRY_STRIDE;
/** i32[64]: what a magnitude counts, by base class from CLASS_MIN on. */
export const WEIGHTS = MAGNITUDES + TABLES * ENTRY_STRIDE;
/** f32[SINGLE_TABLES · CELLS] */
export const CENTROIDS = WEIGHTS + 4 * 64;
/** i32[SINGLE_TABLES · CELLS] */
export const DECISIONS = CENTROIDS + 4 * 64;
/** Per entry: u64 ⌈2^43 / frequency⌉, u32 frequency, u32 start. Then the same for token classes. */
export const ENCODER = DECISIONS + 4 * 64;
export const ENCODER_BYTES = 16;
export const CLASS_ENCODER = ENCODER + ENCODER_BYTES * TABLES * ENTRY_STRIDE;
/** One block of f32 components per lane. */
export const BLOCKS = CLASS_ENCODER + ENCODER_BYTES * 16;
export const BLOCK_BYTES = 4 * BLOCK_COMPONENTS;
/** One record per lane, see LANE. */
export const LANES = BLOCKS + BLOCK_BYTES * MAX_LANES;
export const LANE_BYTES = 64;
/** First byte of what belongs to a chunk. */
export const CHUNK = LANES + LANE_BYTES * MAX_LANES;

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

/** Stands in MAGNITUDES for the escape of a pair: no sum of two magnitudes is as large. */
export const PAIR_ESCAPE_MARK = 255;

export const CENTROID_ROW_BYTES = 4 * CELLS;
