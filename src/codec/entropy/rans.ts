// Static rANS with 12-bit probabilities, a 31-bit state and 16-bit words: frequencies, tables and one lane at a time
// (docs/format/entropy.md). All arithmetic is on integers below 2^31. Does not know what the symbols mean.

import { KvtcError, invariant } from '../../base/errors.ts';

/** Probabilities are multiples of 2^-12. */
export const PROBABILITY_BITS = 12;
export const PROBABILITY_SCALE = 1 << PROBABILITY_BITS;

/** A lane's state lies in [LOWER_BOUND, LOWER_BOUND · 2^16) between symbols and is LOWER_BOUND before the first one. */
export const LOWER_BOUND = 1 << 15;

/** A decoding slot holds the symbol in 7 bits. */
export const MAX_SYMBOLS = 128;

/** Most bits one raw step may carry. */
export const MAX_RAW_BITS = 15;

/**
 * Integer frequencies, summing to PROBABILITY_SCALE, each ≥ 1, in the proportion of `counts` (finite, ≥ 0, not all 0).
 * Rounds down, then gives what is missing to the largest, or takes what is too much from those that lose least;
 * ties go to the lower index. Returns u16[counts.length].
 */
export function quantiseFrequencies(counts: Float64Array): Uint16Array {
  const symbols = counts.length;
  const total = counts.reduce((sum, count) => sum + count, 0);
  invariant(symbols >= 1 && symbols <= MAX_SYMBOLS && total > 0, `frequencies of ${symbols} symbols, total ${total}`);
  const frequencies = new Uint16Array(symbols);
  let sum = 0;
  for (let s = 0; s < symbols; s++) {
    frequencies[s] = Math.max(1, Math.round((counts[s]! / total) * PROBABILITY_SCALE));
    sum += frequencies[s]!;
  }
  // One unit at a time to where code length changes least: few units are ever out of place.
  for (; sum !== PROBABILITY_SCALE; sum += sum < PROBABILITY_SCALE ? 1 : -1) {
    const up = sum < PROBABILITY_SCALE;
    let best = -1;
    let bestGain = -Infinity;
    for (let s = 0; s < symbols; s++) {
      const f = frequencies[s]!;
      if (!up && f === 1) continue;
      const gain = up ? counts[s]! * Math.log2((f + 1) / f) : counts[s]! * Math.log2((f - 1) / f);
      if (gain > bestGain) [best, bestGain] = [s, gain];
    }
    frequencies[best]! += up ? 1 : -1;
  }
  return frequencies;
}

/** True when every frequency is an integer ≥ 1 and all sum to PROBABILITY_SCALE. */
export function areFrequencies(frequencies: ArrayLike<number>): boolean {
  let sum = 0;
  for (let s = 0; s < frequencies.length; s++) {
    const f = frequencies[s]!;
    if (!Number.isInteger(f) || f < 1) return false;
    sum += f;
  }
  return sum === PROBABILITY_SCALE && frequencies.length <= MAX_SYMBOLS;
}

/**
 * Writes the decoding slots of a table into `slots` i32 at [offset, offset + PROBABILITY_SCALE): for slot j of symbol s,
 * j − start(s) in bits 0-11, frequency in bits 12-24, s in bits 25-31. One load then gives all that a step needs.
 */
export function fillSlots(frequencies: ArrayLike<number>, slots: Int32Array, offset: number): void {
  let at = offset;
  for (let s = 0; s < frequencies.length; s++) {
    const f = frequencies[s]!;
    const packed = (f << PROBABILITY_BITS) | (s << 25);
    for (let bias = 0; bias < f; bias++) slots[at++] = packed | bias;
  }
  invariant(at === offset + PROBABILITY_SCALE, 'frequencies do not fill the table');
}

/** Encoding constants of a family of tables, one entry per symbol, addressed by table offset + symbol. */
export interface EncoderTables {
  /** Number below which the state must be before the symbol is coded: frequency · 2^19. f64, since it may be 2^31. */
  readonly limit: Float64Array;
  /** 1 / frequency, raised by 2^-48 so that ⌊state · reciprocal⌋ = ⌊state / frequency⌋ for all states below 2^31. */
  readonly reciprocal: Float64Array;
  /** PROBABILITY_SCALE − frequency. */
  readonly complement: Int32Array;
  readonly start: Int32Array;
}

export function createEncoderTables(entries: number): EncoderTables {
  return {
    limit: new Float64Array(entries),
    reciprocal: new Float64Array(entries),
    complement: new Int32Array(entries),
    start: new Int32Array(entries),
  };
}

/** Fills the encoding constants of one table at [offset, offset + frequencies.length). */
export function fillEncoder(frequencies: ArrayLike<number>, tables: EncoderTables, offset: number): void {
  let start = 0;
  for (let s = 0; s < frequencies.length; s++) {
    const f = frequencies[s]!;
    tables.limit[offset + s] = f * 2 ** (31 - PROBABILITY_BITS);
    tables.reciprocal[offset + s] = (1 / f) * (1 + 2 ** -48);
    tables.complement[offset + s] = PROBABILITY_SCALE - f;
    tables.start[offset + s] = start;
    start += f;
  }
}

/** A lane being written from its last step to its first: the next word goes before `at`. */
export interface LaneWriter {
  state: number;
  at: number;
  readonly words: Uint16Array;
}

/** Begins a lane that fills `scratch` from its end. Room is needed for a word per step and two more. */
export function openLane(scratch: Uint16Array): LaneWriter {
  return { state: LOWER_BOUND, at: scratch.length, words: scratch };
}

/** Writes the state and returns a copy of the lane's words in decoding order. */
export function closeLane(writer: LaneWriter): Uint16Array {
  writer.words[--writer.at] = writer.state & 0xffff;
  writer.words[--writer.at] = writer.state >>> 16;
  return writer.words.slice(writer.at);
}

/** How a raw step stands among coded ones, which are table entries ≥ 0. `bits` in [1, MAX_RAW_BITS]. */
export function rawStep(value: number, bits: number): number {
  return -1 - (value * 16 + bits);
}

/** Codes steps [0, count), last to first. Hot. The state stays below 2^31, so nothing here wraps. */
export function writeSteps(writer: LaneWriter, steps: Int32Array, count: number, tables: EncoderTables): void {
  const { limit, reciprocal, complement, start } = tables;
  const { words } = writer;
  let x = writer.state;
  let at = writer.at;
  for (let i = count - 1; i >= 0; i--) {
    const step = steps[i]!;
    if (step >= 0) {
      if (x >= limit[step]!) {
        words[--at] = x;
        x >>>= 16;
      }
      x += start[step]! + Math.imul((x * reciprocal[step]!) | 0, complement[step]!);
    } else {
      const raw = -1 - step;
      const bits = raw & 15;
      if (x >= 2 ** (31 - bits)) {
        words[--at] = x;
        x >>>= 16;
      }
      x = (x << bits) | (raw >> 4);
    }
  }
  writer.state = x;
  writer.at = at;
}

/** Throws KVTC_CHUNK_MALFORMED unless a decoded lane used up its words and came back to the state coding began with. */
export function checkLaneEnd(lane: number, state: number, wordsRead: number, wordCount: number): void {
  if (state === LOWER_BOUND && wordsRead === wordCount) return;
  throw new KvtcError(
    'KVTC_CHUNK_MALFORMED',
    `lane ${lane} ends in state ${state} after ${wordsRead} words; expected ${LOWER_BOUND} after ${wordCount}`,
    { lane, state, wordsRead, wordCount },
  );
}
