// A chunk's outer bytes: lane count, weights of token classes, lane lengths, words (docs/format/wtc-codec.md, "Chunk").
// Does not know tables, plans or values.

import { KvtcError } from '../../base/errors.ts';
import { PROBABILITY_SCALE, fillSlots } from '../entropy/rans.ts';
import { TOKEN_CLASSES } from './classes.ts';

/** Most lanes of a chunk: two warps of 32. */
export const MAX_LANES = 64;

/** Bytes before the lane lengths: lane count, then a nibble for each token class. */
const HEAD_BYTES = 1 + TOKEN_CLASSES / 2;

/** A lane holds its state of two words at least; longer lanes than this are refused before anything is read. */
const LANE_WORDS_MIN = 2;
const LANE_WORDS_MAX = 1 << 26;

export interface ChunkFrame {
  readonly lanes: number;
  /** All lanes' words, two bytes each: a part of the chunk, not a copy. */
  readonly words: Uint8Array;
  /** i32[lanes + 1]: where a lane's words begin; the last is where they end. */
  readonly laneStarts: Int32Array;
  /** i32[PROBABILITY_SCALE]: decoding slots of the token class table. */
  readonly tokenClassSlots: Int32Array;
}

/** First token of a lane: lanes are runs of neighbouring tokens, as even as can be. `lane` = `lanes` gives the count. */
export function laneTokens(tokenCount: number, lanes: number, lane: number): number {
  return Math.floor((tokenCount * lane) / lanes);
}

/**
 * Weights of token classes for a chunk: 0 where a class does not occur, else 1 to 15 for a share of about
 * 2^(weight − 15) of the most frequent class's. u8[TOKEN_CLASSES].
 */
export function tokenClassWeights(tokenClasses: Int8Array): Uint8Array {
  const counts = new Float64Array(TOKEN_CLASSES);
  for (const tokenClass of tokenClasses) counts[tokenClass + TOKEN_CLASSES / 2]! += 1;
  const most = counts.reduce((a, b) => Math.max(a, b), 0);
  return Uint8Array.from(counts, (count) => (count === 0 ? 0 : Math.max(1, Math.round(15 + Math.log2(count / most)))));
}

/**
 * Frequencies from weights, by integers alone: each class gets max(1, ⌊4096 · 2^(weight−1) / Σ 2^(weight−1)⌋), absent
 * ones 0; what is missing or too much goes to the first class of the largest weight. Null when no weight is set.
 */
export function tokenClassFrequencies(weights: Uint8Array): Uint16Array | null {
  let total = 0;
  for (const weight of weights) total += weight === 0 ? 0 : 1 << (weight - 1);
  if (total === 0) return null;
  const frequencies = new Uint16Array(TOKEN_CLASSES);
  let sum = 0;
  let largest = 0;
  for (let c = 0; c < TOKEN_CLASSES; c++) {
    const weight = weights[c]!;
    if (weight === 0) continue;
    frequencies[c] = Math.max(1, Math.floor((PROBABILITY_SCALE << (weight - 1)) / total));
    sum += frequencies[c]!;
    if (weight > weights[largest]!) largest = c;
  }
  frequencies[largest]! += PROBABILITY_SCALE - sum;
  return frequencies;
}

/** Joins the parts. `laneWords` are bytes of words in decoding order. */
export function writeFrame(weights: Uint8Array, laneWords: readonly Uint8Array[]): Uint8Array {
  const lengths = laneWords.flatMap((words) => variableLength(words.length / 2));
  const wordBytes = laneWords.reduce((sum, words) => sum + words.length, 0);
  const bytes = new Uint8Array(HEAD_BYTES + lengths.length + wordBytes);
  bytes[0] = laneWords.length;
  for (let c = 0; c < TOKEN_CLASSES; c++) bytes[1 + (c >> 1)]! |= weights[c]! << (4 * (c & 1));
  bytes.set(lengths, HEAD_BYTES);
  let at = HEAD_BYTES + lengths.length;
  for (const words of laneWords) {
    bytes.set(words, at);
    at += words.length;
  }
  return bytes;
}

/**
 * Takes a chunk of `tokenCount` tokens apart and checks that its lengths fill it exactly. Throws KVTC_CHUNK_MALFORMED.
 */
export function readFrame(bytes: Uint8Array, tokenCount: number): ChunkFrame {
  if (bytes.length < HEAD_BYTES) malformed(`${bytes.length} bytes are less than its head`);
  const lanes = bytes[0]!;
  if (lanes < 1 || lanes > MAX_LANES || lanes > tokenCount) {
    malformed(`${lanes} lanes for ${tokenCount} tokens; allowed are 1 to ${Math.min(MAX_LANES, tokenCount)}`);
  }
  const weights = new Uint8Array(TOKEN_CLASSES);
  for (let c = 0; c < TOKEN_CLASSES; c++) weights[c] = (bytes[1 + (c >> 1)]! >> (4 * (c & 1))) & 15;
  const frequencies = tokenClassFrequencies(weights);
  if (frequencies === null) malformed('no token class has a weight');
  const laneStarts = new Int32Array(lanes + 1);
  let at = HEAD_BYTES;
  for (let l = 0; l < lanes; l++) {
    let length = 0;
    for (let shift = 0, byte = 128; byte >= 128; shift += 7) {
      if (shift > 21 || at >= bytes.length) malformed(`lane ${l}'s length is cut off or too long`);
      byte = bytes[at++]!;
      length += (byte & 127) * 2 ** shift;
      if (byte === 0 && shift > 0) malformed(`lane ${l}'s length is not in its shortest form`);
    }
    if (length < LANE_WORDS_MIN || length > LANE_WORDS_MAX) malformed(`lane ${l} has ${length} words`);
    laneStarts[l + 1] = laneStarts[l]! + length;
    if (laneStarts[l + 1]! * 2 > bytes.length) malformed(`lane ${l}'s ${length} words pass the chunk's end`);
  }
  const wordCount = laneStarts[lanes]!;
  if (bytes.length - at !== 2 * wordCount) {
    malformed(`${bytes.length - at} bytes of words, its lane lengths say ${2 * wordCount}`);
  }
  const tokenClassSlots = new Int32Array(PROBABILITY_SCALE);
  fillSlots(frequencies, tokenClassSlots, 0);
  return { lanes, words: bytes.subarray(at), laneStarts, tokenClassSlots };
}

function variableLength(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  bytes.push(rest);
  return bytes;
}

function malformed(problem: string): never {
  throw new KvtcError('KVTC_CHUNK_MALFORMED', `a wtc chunk is malformed: ${problem}`);
}
