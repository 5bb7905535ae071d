// Coefficients of one token → coding steps in the order a decoder takes them: quantising and choosing tables in one walk.
// The encoder writes the steps, the estimator sums their lengths, training counts them (docs/format/wtc-codec.md,
// "Walk of a token" and "How the encoder chooses integers"). Does not know bytes.

import { rawStep } from '../entropy/rans.ts';
import { BLOCK_COMPONENTS, CLASS_MIN, classShift, codedPairs } from './classes.ts';
import type { TableFamily } from './family.ts';
import { CELLS } from './family.ts';
import type { WtcPlan } from './plan.ts';
import {
  ENTRY_STRIDE,
  MAX_EXCESS,
  PAIR_CLASS_MAX,
  SHORT_PAIR_CLASS_MAX,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  SINGLE_TABLES,
  clampClass,
  rawBitsOf,
} from './symbols.ts';

/** Steps a pair of components can take at most: its own escape, then per single a symbol, three of escape, one raw. */
export const STEPS_PER_PAIR = 11;

/**
 * A token's steps: an entry ≥ 0 is coded by its table; a negative one, −1 − (value · 16 + bits), is raw. `rows` and
 * `integers` tell what was chosen: table row and k of each component.
 */
export interface TokenSteps {
  readonly steps: Int32Array;
  readonly integers: Int32Array;
  readonly rows: Uint8Array;
  stepCount: number;
  componentCount: number;
}

export function createTokenSteps(rank: number): TokenSteps {
  return {
    steps: new Int32Array((rank / 2) * STEPS_PER_PAIR),
    integers: new Int32Array(rank),
    rows: new Uint8Array(rank),
    stepCount: 0,
    componentCount: 0,
  };
}

/** What symbolising needs of a plan. */
export type SymbolPlan = Pick<WtcPlan, 'cut' | 'componentClasses' | 'pairClasses' | 'family' | 'expectedMagnitudes'>;

/**
 * Fills `token` from the coefficients at `offset`, finite. `step` is the token's own, Δ · m. Magnitudes saturate where
 * the escape ends.
 */
export function symboliseToken(
  coefficients: Float32Array,
  offset: number,
  tokenClass: number,
  step: number,
  plan: SymbolPlan,
  token: TokenSteps,
): void {
  const { pairClasses, componentClasses, family, cut } = plan;
  const { weights } = family;
  const decisions = decisionsFor(family);
  const { steps, integers, rows } = token;
  const expected = plan.expectedMagnitudes(tokenClass);
  const scale = DECISION_UNITS / step;
  const tokenShift = 2 * tokenClass;
  const pairs = codedPairs(pairClasses, tokenClass, cut);
  let observed = 0;
  let shift = tokenShift;
  let n = 0;
  for (let u = 0; u < pairs; u++) {
    if ((u & (BLOCK_COMPONENTS / 2 - 1)) === 0 && u > 0) {
      shift = tokenShift - classShift(observed, expected[u / (BLOCK_COMPONENTS / 2)]!);
    }
    const i = 2 * u;
    const pairClass = pairClasses[u]!;
    const scaleClass = pairClass - shift;
    if (scaleClass > PAIR_CLASS_MAX) {
      for (let j = i; j < i + 2; j++) {
        const own = clampClass(componentClasses[j]! - shift);
        const row = (own > SINGLE_CLASS_MAX ? SINGLE_CLASS_MAX : own) - CLASS_MIN;
        const k = decide(coefficients[offset + j]! * scale, decisions, row * CELLS, (MAX_Q << rawBitsOf(own)) - 1);
        integers[j] = k;
        rows[j] = row;
        n = pushSingle(steps, n, k, own);
        observed += singleMagnitude(k, own) * weights[weightRow(componentClasses[j]! - tokenShift)]!;
      }
      continue;
    }
    // Half of all pairs are zero and half are not: nothing below branches on that.
    const row = scaleClass < CLASS_MIN ? 0 : scaleClass - CLASS_MIN;
    const a = decide(coefficients[offset + i]! * scale, decisions, row * CELLS, MAX_Q);
    const b = decide(coefficients[offset + i + 1]! * scale, decisions, row * CELLS, MAX_Q);
    integers[i] = a;
    integers[i + 1] = b;
    rows[i] = row;
    rows[i + 1] = row;
    const reach = row <= SHORT_PAIR_CLASS_MAX - CLASS_MIN ? 2 : 3;
    const table = (SINGLE_TABLES + row) * ENTRY_STRIDE;
    const weight = weights[weightRow(pairClass - tokenShift)]!;
    const side = 2 * reach + 1;
    if ((a + reach) >>> 0 < side && (b + reach) >>> 0 < side) {
      steps[n++] = table + side * (a + reach) + b + reach;
      observed += ((a ^ (a >> 31)) - (a >> 31) + ((b ^ (b >> 31)) - (b >> 31))) * weight;
    } else {
      steps[n++] = table + side * side;
      n = pushSingle(steps, n, a, row + CLASS_MIN);
      n = pushSingle(steps, n, b, row + CLASS_MIN);
      observed += (singleMagnitude(a, CLASS_MIN) + singleMagnitude(b, CLASS_MIN)) * weight;
    }
  }
  token.stepCount = n;
  token.componentCount = 2 * pairs;
}

/** Decisions are made on whole 1/1024 steps. */
export const DECISION_UNITS = 1024;
export const DECISION_BITS = 10;

/** Largest |k| without raw bits. */
const MAX_Q = SINGLE_REACH + MAX_EXCESS - 1;

/** Magnitudes from here on are rounded without regard to cost, in floats. */
const LARGE = 2 ** 30;

/** i32[SINGLE_TABLES, CELLS]: the thresholds 0|1 and 1|2 less one unit, and 1 + the offset above, in units. */
export function prepareDecisions(family: TableFamily): Int32Array {
  return Int32Array.from(family.thresholds, (threshold, i) =>
    i % CELLS < 2 ? Math.round(threshold * DECISION_UNITS) - 1 : Math.round((threshold + 1) * DECISION_UNITS),
  );
}

const decisionsOf = new WeakMap<TableFamily, Int32Array>();

function decisionsFor(family: TableFamily): Int32Array {
  const known = decisionsOf.get(family) ?? prepareDecisions(family);
  decisionsOf.set(family, known);
  return known;
}

/** Integer k of v = c / step in decision units: one for each threshold passed, sign put back. */
function decide(v: number, decisions: Int32Array, at: number, limit: number): number {
  if (v >= LARGE || v <= -LARGE) {
    const k = Math.min(limit, Math.round(Math.abs(v) / DECISION_UNITS));
    return v < 0 ? -k : k;
  }
  const whole = v | 0;
  const sign = whole >> 31;
  const magnitude = (whole ^ sign) - sign;
  const above = (magnitude - decisions[at + 2]!) >> DECISION_BITS;
  const k =
    ((decisions[at]! - magnitude) >>> 31) + ((decisions[at + 1]! - magnitude) >>> 31) + (above & ~(above >> 31));
  return ((k > limit ? limit : k) ^ sign) - sign;
}

/** Row of weights and expectations for a class before the token's own shift. */
export function weightRow(scaleClass: number): number {
  return (
    (scaleClass < CLASS_MIN ? CLASS_MIN : scaleClass > SINGLE_CLASS_MAX ? SINGLE_CLASS_MAX : scaleClass) - CLASS_MIN
  );
}

/** What a single counts in the observed magnitude: |q|, at most SINGLE_REACH + 1. */
function singleMagnitude(k: number, scaleClass: number): number {
  const rawBits = rawBitsOf(scaleClass);
  const q = rawBits === 0 ? k : (k + (1 << (rawBits - 1))) >> rawBits;
  return Math.min(Math.abs(q), SINGLE_REACH + 1);
}

/** Steps of one component of a clamped class by itself; returns the new count. */
function pushSingle(steps: Int32Array, count: number, k: number, scaleClass: number): number {
  const rawBits = rawBitsOf(scaleClass);
  // Cells of 2^rawBits integers, centred on a multiple of that.
  const centred = rawBits === 0 ? k : k + (1 << (rawBits - 1));
  const q = centred >> rawBits;
  const table = (scaleClass - 4 * rawBits - CLASS_MIN) * ENTRY_STRIDE;
  let n = count;
  if (q >= -SINGLE_REACH && q <= SINGLE_REACH) {
    steps[n++] = table + q + SINGLE_REACH;
  } else {
    const excess = Math.abs(q) - SINGLE_REACH;
    const length = 31 - Math.clz32(excess);
    steps[n++] = table + SINGLE_ESCAPE;
    steps[n++] = rawStep(length, 4);
    if (length > 0) steps[n++] = rawStep(excess & ((1 << length) - 1), length);
    steps[n++] = rawStep(q < 0 ? 1 : 0, 1);
  }
  if (rawBits > 0) steps[n++] = rawStep(centred & ((1 << rawBits) - 1), rawBits);
  return n;
}

/** What integer k of a class stands for, in steps: sign · f32(|k| + centroid). `row` = class − CLASS_MIN. */
export function reconstruct(k: number, centroids: Float32Array, row: number): number {
  if (k === 0) return 0;
  const magnitude = Math.abs(k);
  const value = Math.fround(magnitude + centroids[row * CELLS + Math.min(magnitude, CELLS) - 1]!);
  return k < 0 ? -value : value;
}
