// Decodes one chunk of a stream: lanes of rANS words → coefficients (docs/format/wtc-codec.md, docs/format/entropy.md).
// All lanes walk together, pair by pair, so that one lane's long dependency chain overlaps the others'.
// Everything it reads and writes is bounded by the plan; wrong bytes end in KVTC_CHUNK_MALFORMED.

import { KvtcError } from '../../base/errors.ts';
import { LOWER_BOUND, PROBABILITY_SCALE, checkLaneEnd } from '../entropy/rans.ts';
import { BLOCK_COMPONENTS, CLASS_MIN, TOKEN_CLASS_MIN, classShift, codedPairs, tokenStep } from './classes.ts';
import { reconstruct } from './coder-tables.ts';
import type { ChunkFrame } from './frame.ts';
import { laneTokens } from './frame.ts';
import type { WtcPlan } from './plan.ts';
import { weightRow } from './symbolise.ts';
import {
  ENTRY_STRIDE,
  PAIR_CLASS_MAX,
  SHORT_PAIR_CLASS_MAX,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  SINGLE_TABLES,
  clampClass,
  rawBitsOf,
} from './symbols.ts';

const MASK = PROBABILITY_SCALE - 1;
const BLOCK_PAIRS = BLOCK_COMPONENTS / 2;
const SHORT_PAIR_ROWS = SHORT_PAIR_CLASS_MAX - CLASS_MIN + 1;

/** Where each lane stands, one entry per lane. */
interface Lanes {
  readonly words: Uint16Array;
  readonly states: Int32Array;
  readonly positions: Int32Array;
  /** Pairs of the lane's token that are still coded at all. */
  readonly pairCounts: Int32Array;
  /** Twice the token's class, and that less the shift its magnitudes give. */
  readonly tokenShifts: Int32Array;
  readonly shifts: Int32Array;
  /** The token's step and its weighted magnitudes so far. */
  readonly steps: Float64Array;
  readonly observed: Int32Array;
  /** One block of components per lane: writing rows directly would fight over cache sets. */
  readonly block: Float32Array;
}

/**
 * Fills `out` f32[tokenCount, plan.rank] and `tokenClasses` i8[tokenCount] from a parsed frame. Integers are the same on
 * every machine; a coefficient is the f32 product of two f32 numbers. Throws KVTC_CHUNK_MALFORMED.
 */
export function decodeLanes(
  frame: ChunkFrame,
  tokenCount: number,
  plan: WtcPlan,
  out: Float32Array,
  tokenClasses: Int8Array,
): void {
  const { laneStarts, lanes: laneCount } = frame;
  const lanes = startLanes(frame);
  out.fill(0, 0, tokenCount * plan.rank);
  const longest = Math.ceil(tokenCount / laneCount);
  const rowStarts = new Int32Array(laneCount);
  const expected: Int32Array[] = [];
  for (let turn = 0; turn < longest; turn++) {
    let pairs = 0;
    for (let l = 0; l < laneCount; l++) {
      const token = laneTokens(tokenCount, laneCount, l) + turn;
      lanes.pairCounts[l] = 0;
      if (token >= laneTokens(tokenCount, laneCount, l + 1)) continue;
      const tokenClass = decodeTokenClass(lanes, l, frame.tokenClassSlots);
      tokenClasses[token] = tokenClass;
      lanes.pairCounts[l] = codedPairs(plan.pairClasses, tokenClass, plan.cut);
      lanes.tokenShifts[l] = lanes.shifts[l] = 2 * tokenClass;
      lanes.steps[l] = tokenStep(plan.stepIndex, tokenClass);
      lanes.observed[l] = 0;
      rowStarts[l] = token * plan.rank;
      expected[l] = plan.expectedMagnitudes(tokenClass);
      pairs = Math.max(pairs, lanes.pairCounts[l]!);
    }
    for (let first = 0; first < pairs; first += BLOCK_PAIRS) {
      if (first > 0) shiftLanes(lanes, expected, first / BLOCK_PAIRS);
      decodeBlock(lanes, plan, first, Math.min(first + BLOCK_PAIRS, pairs));
      writeBlock(lanes, first, rowStarts, out);
    }
  }
  for (let l = 0; l < laneCount; l++) {
    const start = laneStarts[l]!;
    checkLaneEnd(l, lanes.states[l]!, lanes.positions[l]! - start, laneStarts[l + 1]! - start);
  }
}

function startLanes({ words, laneStarts, lanes: laneCount }: ChunkFrame): Lanes {
  const integers = (): Int32Array => new Int32Array(laneCount);
  const states = integers();
  const positions = integers();
  for (let l = 0; l < laneCount; l++) {
    const at = laneStarts[l]!;
    states[l] = (words[at]! << 16) | words[at + 1]!;
    positions[l] = at + 2;
    if (states[l]! < LOWER_BOUND) {
      throw new KvtcError('KVTC_CHUNK_MALFORMED', `lane ${l} of a wtc chunk begins in state ${states[l]}`, {
        lane: l,
        state: states[l],
      });
    }
  }
  return {
    words,
    states,
    positions,
    pairCounts: integers(),
    tokenShifts: integers(),
    shifts: integers(),
    steps: new Float64Array(laneCount),
    observed: integers(),
    block: new Float32Array(laneCount * BLOCK_COMPONENTS),
  };
}

function shiftLanes({ shifts, tokenShifts, observed }: Lanes, expected: readonly Int32Array[], block: number): void {
  for (let l = 0; l < shifts.length; l++) {
    const expectation = expected[l]?.[block] ?? 0;
    shifts[l] = tokenShifts[l]! - classShift(observed[l]!, expectation);
  }
}

/** Pairs [first, end) of every lane's token into its block; in each pair lanes in order. Hot. */
function decodeBlock(lanes: Lanes, plan: WtcPlan, first: number, end: number): void {
  const { words, states, positions, pairCounts, tokenShifts, shifts, steps, observed, block } = lanes;
  const { pairClasses } = plan;
  const { weights } = plan.family;
  const { slots, values, magnitudes } = plan.tables;
  const laneCount = states.length;
  for (let u = first; u < end; u++) {
    const pairClass = pairClasses[u]!;
    for (let l = 0, to = 2 * (u - first); l < laneCount; l++, to += BLOCK_COMPONENTS) {
      if (u >= pairCounts[l]!) continue;
      const scaleClass = pairClass - shifts[l]!;
      if (scaleClass > PAIR_CLASS_MAX) {
        decodeSingles(lanes, l, plan, 2 * u, to);
        continue;
      }
      const row = scaleClass < CLASS_MIN ? 0 : scaleClass - CLASS_MIN;
      const state = states[l]!;
      const slot = slots[((SINGLE_TABLES + row) << 12) | (state & MASK)]!;
      const x = Math.imul((slot >>> 12) & 8191, state >>> 12) + (slot & MASK);
      // Without branches, since neither the next word nor a pair's being zero can be foreseen.
      const refill = (x - LOWER_BOUND) >> 31;
      const position = positions[l]!;
      states[l] = (x << (refill & 16)) | (words[position]! & refill);
      positions[l] = position - refill;
      const symbol = slot >>> 25;
      if (symbol === (row < SHORT_PAIR_ROWS ? 25 : 49)) {
        const weight = weights[weightRow(pairClass - tokenShifts[l]!)]!;
        block[to] = decodeSingle(lanes, l, plan, row + CLASS_MIN, weight) * steps[l]!;
        block[to + 1] = decodeSingle(lanes, l, plan, row + CLASS_MIN, weight) * steps[l]!;
        continue;
      }
      const entry = (SINGLE_TABLES + row) * ENTRY_STRIDE + symbol;
      observed[l]! += magnitudes[entry]! * weights[weightRow(pairClass - tokenShifts[l]!)]!;
      block[to] = values[2 * entry]! * steps[l]!;
      block[to + 1] = values[2 * entry + 1]! * steps[l]!;
    }
  }
}

/** A pair of components as singles, each of its own class. */
function decodeSingles(lanes: Lanes, l: number, plan: WtcPlan, component: number, to: number): void {
  const { tokenShifts, shifts, steps, block } = lanes;
  for (let j = 0; j < 2; j++) {
    const own = plan.componentClasses[component + j]!;
    const weight = plan.family.weights[weightRow(own - tokenShifts[l]!)]!;
    block[to + j] = decodeSingle(lanes, l, plan, clampClass(own - shifts[l]!), weight) * steps[l]!;
  }
}

/** One component of a clamped class by itself, in steps. */
function decodeSingle(lanes: Lanes, l: number, plan: WtcPlan, scaleClass: number, weight: number): number {
  const { words, states, positions, observed } = lanes;
  const rawBits = rawBitsOf(scaleClass);
  const row = scaleClass - 4 * rawBits - CLASS_MIN;
  let x = states[l]!;
  const slot = plan.tables.slots[(row << 12) | (x & MASK)]!;
  x = Math.imul((slot >>> 12) & 8191, x >>> 12) + (slot & MASK);
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  const entry = row * ENTRY_STRIDE + (slot >>> 25);
  observed[l]! += plan.tables.magnitudes[entry]! * weight;
  const escapes = slot >>> 25 === SINGLE_ESCAPE;
  if (!escapes && rawBits === 0) return plan.tables.values[2 * entry]!;
  const q = escapes ? decodeEscape(lanes, l) : (slot >>> 25) - SINGLE_REACH;
  if (rawBits === 0) return reconstruct(q, plan.family.centroids, row);
  const k = q * (1 << rawBits) - (1 << (rawBits - 1)) + decodeRaw(lanes, l, rawBits);
  return reconstruct(k, plan.family.centroids, SINGLE_CLASS_MAX - CLASS_MIN);
}

/** |q| − SINGLE_REACH ≥ 1: its bit length less one (4 bits), the bits below its highest, then the sign. */
function decodeEscape(lanes: Lanes, l: number): number {
  const length = decodeRaw(lanes, l, 4);
  const excess = (1 << length) | (length === 0 ? 0 : decodeRaw(lanes, l, length));
  const magnitude = SINGLE_REACH + excess;
  return decodeRaw(lanes, l, 1) === 0 ? magnitude : -magnitude;
}

function decodeRaw({ words, states, positions }: Lanes, l: number, bits: number): number {
  let x = states[l]!;
  const value = x & ((1 << bits) - 1);
  x >>>= bits;
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  return value;
}

function decodeTokenClass({ words, states, positions }: Lanes, l: number, slots: Int32Array): number {
  let x = states[l]!;
  const slot = slots[x & MASK]!;
  x = Math.imul((slot >>> 12) & 8191, x >>> 12) + (slot & MASK);
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  return (slot >>> 25) + TOKEN_CLASS_MIN;
}

/** Copies the lanes' blocks into their rows. Hot. */
function writeBlock({ block, pairCounts }: Lanes, first: number, rowStarts: Int32Array, out: Float32Array): void {
  for (let l = 0; l < pairCounts.length; l++) {
    const count = 2 * Math.min(BLOCK_PAIRS, pairCounts[l]! - first);
    const from = l * BLOCK_COMPONENTS;
    const to = rowStarts[l]! + 2 * first;
    for (let i = 0; i < count; i++) out[to + i] = block[from + i]!;
  }
}
