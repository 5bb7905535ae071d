// Encodes one chunk of a stream: coefficients → lanes of rANS words, the exact reverse of decode.ts. A lane's tokens are
// walked from last to first, as rANS demands; words are written from the end of a scratch buffer backwards.

import { LOWER_BOUND, createEncoderTables, fillEncoder } from '../entropy/rans.ts';
import type { EncoderTables } from '../entropy/rans.ts';
import { CLASS_MIN, GROUP_SIZE, TOKEN_CLASSES, codedGroups, stepMultiplier } from './classes.ts';
import { ENTRY_STRIDE, FIRST_PAIR, FIRST_QUAD, LOWEST_PAIR_CLASS } from './coder-tables.ts';
import { laneTokens, tokenClassFrequencies, tokenClassWeights, writeFrame } from './frame.ts';
import type { WtcPlan } from './plan.ts';
import { quantiseToken, singleClass } from './quantise.ts';
import {
  PAIR_CLASS_MAX,
  PAIR_ESCAPE,
  QUAD_CLASS_MAX,
  QUAD_ESCAPE,
  QUAD_SYMBOL_OF,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  rawBitsOf,
} from './symbols.ts';

/** More words than any component can take: 12 bits of pattern, 12 of symbol, 20 of escape, 12 raw, never all at once. */
const WORDS_PER_COMPONENT = 3;

/** A lane being written: the next word goes before `at`. */
interface LaneWriter {
  state: number;
  at: number;
  readonly words: Uint16Array;
}

/** Chunk bytes of `coefficients` f32[tokenCount, plan.rank], finite, and their token classes. */
export function encodeLanes(
  coefficients: Float32Array,
  tokenCount: number,
  tokenClasses: Int8Array,
  lanes: number,
  plan: WtcPlan,
): Uint8Array {
  const { rank, groupClasses, cut } = plan;
  const weights = tokenClassWeights(tokenClasses);
  const tokenClassTable = createEncoderTables(TOKEN_CLASSES);
  fillEncoder(tokenClassFrequencies(weights) ?? [], tokenClassTable, 0);
  const integers = new Int32Array(rank);
  const longest = Math.ceil(tokenCount / lanes);
  const scratch = new Uint16Array(longest * (rank * WORDS_PER_COMPONENT + 1) + 2);
  const laneWords: Uint16Array[] = [];
  for (let l = 0; l < lanes; l++) {
    const writer: LaneWriter = { state: LOWER_BOUND, at: scratch.length, words: scratch };
    const first = laneTokens(tokenCount, lanes, l);
    for (let token = laneTokens(tokenCount, lanes, l + 1) - 1; token >= first; token--) {
      const tokenClass = tokenClasses[token]!;
      const groups = codedGroups(groupClasses, tokenClass, cut);
      const step = plan.step * stepMultiplier(tokenClass);
      quantiseToken(coefficients, token * rank, groups, 2 * tokenClass, step, plan, integers);
      encodeGroups(writer, integers, groups, 2 * tokenClass, plan);
      put(writer, tokenClassTable, tokenClass + TOKEN_CLASSES / 2);
    }
    scratch[--writer.at] = writer.state >>> 16;
    scratch[--writer.at] = writer.state & 0xffff;
    laneWords.push(scratch.slice(writer.at));
  }
  return writeFrame(weights, laneWords);
}

/** One token's groups, last to first. Hot: the common steps are written out. */
function encodeGroups(writer: LaneWriter, integers: Int32Array, groups: number, shift: number, plan: WtcPlan): void {
  const { groupClasses, componentClasses } = plan;
  const { encoder } = plan.tables;
  const { limit, reciprocal, complement, start } = encoder;
  const { words } = writer;
  let x = writer.state;
  let at = writer.at;
  for (let g = groups - 1; g >= 0; g--) {
    const scaleClass = groupClasses[g]! - shift;
    const i = g * GROUP_SIZE;
    if (scaleClass <= PAIR_CLASS_MAX) {
      const a = integers[i]!;
      const b = integers[i + 1]!;
      const c = integers[i + 2]!;
      const d = integers[i + 3]!;
      if (scaleClass <= QUAD_CLASS_MAX) {
        let entry = (FIRST_QUAD + scaleClass - CLASS_MIN) * ENTRY_STRIDE;
        if ((a | b | c | d) !== 0) {
          const symbol = quadSymbol(a, b, c, d);
          if (symbol === QUAD_ESCAPE) {
            writer.state = x;
            writer.at = at;
            for (let j = 3; j >= 0; j--) putSingle(writer, encoder, integers[i + j]!, scaleClass);
            x = writer.state;
            at = writer.at;
          }
          entry += symbol;
        }
        if (x >= limit[entry]!) {
          words[--at] = x;
          x >>>= 16;
        }
        x += start[entry]! + Math.imul((x * reciprocal[entry]!) | 0, complement[entry]!);
      } else {
        for (let j = 2; j >= 0; j -= 2) {
          const first = j === 0 ? a : c;
          const second = j === 0 ? b : d;
          let symbol = 5 * first + second + 12;
          if (first < -2 || first > 2 || second < -2 || second > 2) {
            symbol = PAIR_ESCAPE;
            writer.state = x;
            writer.at = at;
            putSingle(writer, encoder, second, scaleClass);
            putSingle(writer, encoder, first, scaleClass);
            x = writer.state;
            at = writer.at;
          }
          const entry = (FIRST_PAIR + scaleClass - LOWEST_PAIR_CLASS) * ENTRY_STRIDE + symbol;
          if (x >= limit[entry]!) {
            words[--at] = x;
            x >>>= 16;
          }
          x += start[entry]! + Math.imul((x * reciprocal[entry]!) | 0, complement[entry]!);
        }
      }
      continue;
    }
    for (let j = 3; j >= 0; j--) {
      const k = integers[i + j]!;
      const own = componentClasses[i + j]! - shift;
      const q = rawBitsOf(own) === 0 && own >= CLASS_MIN && k >= -SINGLE_REACH && k <= SINGLE_REACH;
      if (!q) {
        writer.state = x;
        writer.at = at;
        putSingle(writer, encoder, k, own);
        x = writer.state;
        at = writer.at;
        continue;
      }
      const entry = (own - CLASS_MIN) * ENTRY_STRIDE + k + SINGLE_REACH;
      if (x >= limit[entry]!) {
        words[--at] = x;
        x >>>= 16;
      }
      x += start[entry]! + Math.imul((x * reciprocal[entry]!) | 0, complement[entry]!);
    }
  }
  writer.state = x;
  writer.at = at;
}

/** Symbol of a quad, QUAD_ESCAPE where it has none. */
export function quadSymbol(a: number, b: number, c: number, d: number): number {
  if (((a + 2) | (b + 2) | (c + 2) | (d + 2)) >>> 0 > 7) return QUAD_ESCAPE;
  if (a > 2 || b > 2 || c > 2 || d > 2) return QUAD_ESCAPE;
  return QUAD_SYMBOL_OF[125 * a + 25 * b + 5 * c + d + 312]!;
}

/** One component by itself: the steps of decodeSingle, last to first. */
function putSingle(writer: LaneWriter, encoder: EncoderTables, k: number, scaleClass: number): void {
  const clamped = singleClass(scaleClass);
  const rawBits = rawBitsOf(clamped);
  const row = clamped - 4 * rawBits - CLASS_MIN;
  let q = k;
  if (rawBits > 0) {
    const centred = k + (1 << (rawBits - 1));
    putRaw(writer, centred & ((1 << rawBits) - 1), rawBits);
    q = centred >> rawBits;
  }
  const magnitude = Math.abs(q);
  if (magnitude <= SINGLE_REACH) {
    put(writer, encoder, row * ENTRY_STRIDE + q + SINGLE_REACH);
    return;
  }
  const excess = magnitude - SINGLE_REACH;
  const length = 31 - Math.clz32(excess);
  putRaw(writer, q < 0 ? 1 : 0, 1);
  if (length > 0) putRaw(writer, excess & ((1 << length) - 1), length);
  putRaw(writer, length, 4);
  put(writer, encoder, row * ENTRY_STRIDE + SINGLE_ESCAPE);
}

function put(writer: LaneWriter, tables: EncoderTables, entry: number): void {
  let x = writer.state;
  if (x >= tables.limit[entry]!) {
    writer.words[--writer.at] = x;
    x >>>= 16;
  }
  writer.state = x + tables.start[entry]! + Math.imul((x * tables.reciprocal[entry]!) | 0, tables.complement[entry]!);
}

function putRaw(writer: LaneWriter, value: number, bits: number): void {
  let x = writer.state;
  if (x >= 2 ** (31 - bits)) {
    writer.words[--writer.at] = x;
    x >>>= 16;
  }
  writer.state = (x << bits) | value;
}
