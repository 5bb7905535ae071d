// Decodes one chunk of a stream: lanes of rANS words → coefficients (docs/format/wtc-codec.md, docs/format/entropy.md).
// One pass walks all lanes together, group by group, so that a lane's long dependency chain overlaps the others'.
// Everything it reads is bounded by the plan; wrong bytes end in KVTC_CHUNK_MALFORMED.

import { KvtcError } from '../../base/errors.ts';
import { LOWER_BOUND, PROBABILITY_SCALE, checkLaneEnd } from '../entropy/rans.ts';
import { CLASS_MAX, CLASS_MIN, GROUP_SIZE, codedGroups, stepMultiplier } from './classes.ts';
import { ENTRY_STRIDE, FIRST_PAIR, FIRST_QUAD, LOWEST_PAIR_CLASS, reconstruct } from './coder-tables.ts';
import type { ChunkFrame } from './frame.ts';
import { laneTokens } from './frame.ts';
import type { WtcPlan } from './plan.ts';
import {
  PAIR_CLASS_MAX,
  PAIR_ESCAPE,
  QUAD_CLASS_MAX,
  QUAD_ESCAPE,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  rawBitsOf,
} from './symbols.ts';

const MASK = PROBABILITY_SCALE - 1;

/** Where each lane stands. */
interface Lanes {
  readonly states: Int32Array;
  readonly positions: Int32Array;
}

/**
 * Fills `out` f32[tokenCount, plan.rank] and `tokenClasses` i8[tokenCount] from a parsed frame. The integer part is the
 * same on every machine; a coefficient is f32(value · Δ · m). Throws KVTC_CHUNK_MALFORMED.
 */
export function decodeLanes(
  frame: ChunkFrame,
  tokenCount: number,
  plan: WtcPlan,
  out: Float32Array,
  tokenClasses: Int8Array,
): void {
  const { words, laneStarts, lanes } = frame;
  const { rank, groupClasses, cut } = plan;
  const states = new Int32Array(lanes);
  const positions = new Int32Array(lanes);
  for (let l = 0; l < lanes; l++) {
    const at = laneStarts[l]!;
    states[l] = words[at]! | (words[at + 1]! << 16);
    positions[l] = at + 2;
    if (states[l]! < LOWER_BOUND) malformed(`lane ${l} begins in state ${states[l]}`);
  }
  out.fill(0, 0, tokenCount * rank);

  const active: Lanes = { states, positions };
  const firstTokens = Int32Array.from({ length: lanes }, (_, l) => laneTokens(tokenCount, lanes, l));
  const shifts = new Int32Array(lanes);
  const offsets = new Int32Array(lanes);
  const counts = new Int32Array(lanes);
  const steps = new Float64Array(lanes);
  const longest = Math.ceil(tokenCount / lanes);
  for (let turn = 0; turn < longest; turn++) {
    let groups = 0;
    for (let l = 0; l < lanes; l++) {
      const token = firstTokens[l]! + turn;
      counts[l] = 0;
      if (token >= laneTokens(tokenCount, lanes, l + 1)) continue;
      const tokenClass = decodeTokenClass(active, l, words, frame);
      tokenClasses[token] = tokenClass;
      shifts[l] = 2 * tokenClass;
      offsets[l] = token * rank;
      steps[l] = plan.step * stepMultiplier(tokenClass);
      counts[l] = codedGroups(groupClasses, tokenClass, cut);
      groups = Math.max(groups, counts[l]!);
    }
    decodeGroups(active, words, plan, groups, counts, shifts, offsets, steps, out);
  }
  for (let l = 0; l < lanes; l++) {
    const start = laneStarts[l]!;
    checkLaneEnd(l, states[l]!, positions[l]! - start, laneStarts[l + 1]! - start);
  }
}

function decodeTokenClass({ states, positions }: Lanes, l: number, words: Uint16Array, frame: ChunkFrame): number {
  const entry = frame.tokenClassSlots[states[l]! & MASK]!;
  let x = Math.imul((entry >>> 12) & 8191, states[l]! >>> 12) + (entry & MASK);
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  return (entry >>> 25) - 8;
}

/** One token of every lane: groups [0, groups), in each of them lanes in order. Hot. */
function decodeGroups(
  lanes: Lanes,
  words: Uint16Array,
  plan: WtcPlan,
  groups: number,
  counts: Int32Array,
  shifts: Int32Array,
  offsets: Int32Array,
  steps: Float64Array,
  out: Float32Array,
): void {
  const { states, positions } = lanes;
  const { groupClasses, componentClasses } = plan;
  const { slots, singleValues, pairValues, quadValues } = plan.tables;
  const laneCount = states.length;
  for (let g = 0; g < groups; g++) {
    const groupClass = groupClasses[g]!;
    for (let l = 0; l < laneCount; l++) {
      if (g >= counts[l]!) continue;
      const scaleClass = groupClass - shifts[l]!;
      let x = states[l]!;
      const at = offsets[l]! + g * GROUP_SIZE;
      if (scaleClass <= QUAD_CLASS_MAX) {
        const row = scaleClass - CLASS_MIN;
        const entry = slots[((FIRST_QUAD + row) << 12) + (x & MASK)]!;
        x = Math.imul((entry >>> 12) & 8191, x >>> 12) + (entry & MASK);
        if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
        states[l] = x;
        const symbol = entry >>> 25;
        if (symbol === 0) continue;
        if (symbol === QUAD_ESCAPE) {
          for (let i = 0; i < 4; i++) out[at + i] = decodeSingle(lanes, l, words, plan, scaleClass) * steps[l]!;
          continue;
        }
        const from = (row * ENTRY_STRIDE + symbol) * 4;
        const step = steps[l]!;
        out[at] = quadValues[from]! * step;
        out[at + 1] = quadValues[from + 1]! * step;
        out[at + 2] = quadValues[from + 2]! * step;
        out[at + 3] = quadValues[from + 3]! * step;
      } else if (scaleClass <= PAIR_CLASS_MAX) {
        const row = scaleClass - LOWEST_PAIR_CLASS;
        const table = (FIRST_PAIR + row) << 12;
        const step = steps[l]!;
        for (let i = 0; i < 4; i += 2) {
          const entry = slots[table + (x & MASK)]!;
          x = Math.imul((entry >>> 12) & 8191, x >>> 12) + (entry & MASK);
          if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
          const symbol = entry >>> 25;
          if (symbol === PAIR_ESCAPE) {
            states[l] = x;
            out[at + i] = decodeSingle(lanes, l, words, plan, scaleClass) * step;
            out[at + i + 1] = decodeSingle(lanes, l, words, plan, scaleClass) * step;
            x = states[l]!;
          } else {
            const from = (row * ENTRY_STRIDE + symbol) * 2;
            out[at + i] = pairValues[from]! * step;
            out[at + i + 1] = pairValues[from + 1]! * step;
          }
        }
        states[l] = x;
      } else {
        const step = steps[l]!;
        const shift = shifts[l]!;
        for (let i = 0; i < 4; i++) {
          const componentClass = componentClasses[g * GROUP_SIZE + i]! - shift;
          if (componentClass > SINGLE_CLASS_MAX || componentClass < CLASS_MIN) {
            states[l] = x;
            out[at + i] = decodeSingle(lanes, l, words, plan, componentClass) * step;
            x = states[l]!;
            continue;
          }
          const row = componentClass - CLASS_MIN;
          const entry = slots[(row << 12) + (x & MASK)]!;
          x = Math.imul((entry >>> 12) & 8191, x >>> 12) + (entry & MASK);
          if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
          const symbol = entry >>> 25;
          if (symbol === SINGLE_ESCAPE) {
            states[l] = x;
            out[at + i] = reconstruct(decodeEscape(lanes, l, words), plan.family.centroids, row) * step;
            x = states[l]!;
          } else {
            out[at + i] = singleValues[row * ENTRY_STRIDE + symbol]! * step;
          }
        }
        states[l] = x;
      }
    }
  }
}

/** One component of any class by itself, in steps. */
function decodeSingle(lanes: Lanes, l: number, words: Uint16Array, plan: WtcPlan, scaleClass: number): number {
  const clamped = scaleClass < CLASS_MIN ? CLASS_MIN : scaleClass > CLASS_MAX ? CLASS_MAX : scaleClass;
  const rawBits = rawBitsOf(clamped);
  const row = clamped - 4 * rawBits - CLASS_MIN;
  const { states, positions } = lanes;
  let x = states[l]!;
  const entry = plan.tables.slots[(row << 12) + (x & MASK)]!;
  x = Math.imul((entry >>> 12) & 8191, x >>> 12) + (entry & MASK);
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  const symbol = entry >>> 25;
  const q = symbol === SINGLE_ESCAPE ? decodeEscape(lanes, l, words) : symbol - SINGLE_REACH;
  if (rawBits === 0) return reconstruct(q, plan.family.centroids, row);
  // Cells of 2^rawBits integers, centred on a multiple of that.
  const k = (q << rawBits) - (1 << (rawBits - 1)) + decodeRaw(lanes, l, words, rawBits);
  return reconstruct(k, plan.family.centroids, SINGLE_CLASS_MAX - CLASS_MIN);
}

/** |q| − SINGLE_REACH ≥ 1 as its bit length less one (4 bits) and the bits below its highest; then the sign. */
function decodeEscape(lanes: Lanes, l: number, words: Uint16Array): number {
  const length = decodeRaw(lanes, l, words, 4);
  const excess = (1 << length) | (length === 0 ? 0 : decodeRaw(lanes, l, words, length));
  const magnitude = SINGLE_REACH + excess;
  return decodeRaw(lanes, l, words, 1) === 0 ? magnitude : -magnitude;
}

function decodeRaw({ states, positions }: Lanes, l: number, words: Uint16Array, bits: number): number {
  let x = states[l]!;
  const value = x & ((1 << bits) - 1);
  x >>>= bits;
  if (x < LOWER_BOUND) x = (x << 16) | words[positions[l]!++]!;
  states[l] = x;
  return value;
}

function malformed(problem: string): never {
  throw new KvtcError('KVTC_CHUNK_MALFORMED', `a wtc chunk is malformed: ${problem}`);
}
