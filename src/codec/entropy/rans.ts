// Static rANS with 12-bit probabilities, a 31-bit state and 16-bit words: frequencies, tables and one lane at a time
// (docs/format/entropy.md). All arithmetic is on integers below 2^31. Does not know what the symbols mean.

import { KvtcError, invariant } from '../../base/errors.ts';

/** Probabilities are multiples of 2^-12. */
export const PROBABILITY_BITS = 12;
export const PROBABILITY_SCALE = 1 << PROBABILITY_BITS;

/** A lane's state lies in [LOWER_BOUND, LOWER_BOUND · 2^16) between symbols and is LOWER_BOUND before the first one. */
export const LOWER_BOUND = 1 << 15;

/** A decoding slot holds the symbol in 7 bits. */
const MAX_SYMBOLS = 128;

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

/** Bytes an encoder's table takes for a symbol. */
const ENCODER_BYTES = 16;

/**
 * Writes the encoding constants of a table, 16 bytes a symbol, at `offsetBytes`: u64 ⌈2^43 / f⌉, u32 f · 2^19, from which
 * on a state gives a word away, u16 4096 − f, u16 start, all little-endian. A state that may be coded is below f · 2^19,
 * so ⌊state · ⌈2^43 / f⌉ / 2^43⌋ is ⌊state / f⌋ exactly and the product stays below 2^63. Symbols of frequency 0 get zeros.
 */
export function fillEncoder(frequencies: ArrayLike<number>, view: DataView, offsetBytes: number): void {
  let start = 0;
  for (let s = 0; s < frequencies.length; s++) {
    const f = frequencies[s]!;
    const at = offsetBytes + ENCODER_BYTES * s;
    view.setBigUint64(at, f === 0 ? 0n : BigInt(Math.ceil(2 ** 43 / f)), true);
    view.setUint32(at + 8, f * 2 ** 19, true);
    view.setUint16(at + 12, f === 0 ? 0 : PROBABILITY_SCALE - f, true);
    view.setUint16(at + 14, f === 0 ? 0 : start, true);
    start += f;
  }
}

/** How a raw step stands among coded ones, which are table entries ≥ 0. `bits` in [1, 15]. */
export function rawStep(value: number, bits: number): number {
  return -1 - (value * 16 + bits);
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
