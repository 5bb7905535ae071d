// Trains a family of tables on calibration coefficients: counts at many steps, tables from counts, thresholds from
// tables, a few times over (entropy-constrained quantisation). Does not know where coefficients come from.

import { invariant } from '../../base/errors.ts';
import { quantiseFrequencies } from '../entropy/rans.ts';
import { CLASS_MIN, GROUP_SIZE, componentClasses, groupClasses } from './classes.ts';
import { LOWEST_PAIR_CLASS } from './coder-tables.ts';
import { quadSymbol } from './encode.ts';
import type { TableFamily } from './family.ts';
import { CELLS } from './family.ts';
import { quantiseToken } from './quantise.ts';
import type { StreamTables, WtcPlan } from './plan.ts';
import {
  PAIR_CLASSES,
  PAIR_CLASS_MAX,
  PAIR_ESCAPE,
  PAIR_SYMBOLS,
  QUAD_CLASSES,
  QUAD_CLASS_MAX,
  QUAD_ESCAPE,
  QUAD_SYMBOLS,
  QUAD_VALUES,
  SINGLE_CLASSES,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  SINGLE_SYMBOLS,
} from './symbols.ts';

/**
 * Weight of one bit of code against squared error, in Δ². ln 2 / 6 is the slope of a fine uniform quantiser; measured
 * on SmolLM2, 0.08 to 0.15 differ by less than 0.5 % of rate.
 */
export const BIT_WEIGHT = Math.LN2 / 6;

/** Rounds of counting; the thresholds move by less than 0.01 after the third. */
const ROUNDS = 3;

/** Counts of a Laplacian of the class's σ that every table starts with, so that unseen classes still code well. */
const PRIOR_WEIGHT = 8;

export interface TrainingRows {
  /** f32[tokenCount, rank], row-major, finite. Best not the rows the basis was fitted on. */
  readonly coefficients: Float32Array;
  readonly tokenCount: number;
  /** Multiple of 16. */
  readonly rank: number;
}

/** What a family is trained from in one round. */
interface Counts {
  readonly single: Float64Array;
  readonly pair: Float64Array;
  readonly quad: Float64Array;
  /** f64[SINGLE_CLASSES, SINGLE_REACH + 2] by |k|, however coded: for thresholds and centroids. */
  readonly magnitudes: Float64Array;
  /** f64[SINGLE_CLASSES, CELLS]: sums of |c| / step − |k| and their number. */
  readonly offsets: Float64Array;
  readonly offsetCounts: Float64Array;
}

/**
 * Tables for one stream. `scales` i16[≥ rank] from scaleIndices; `stepIndices` should span the steps the profile will be
 * used with, an octave beyond at both ends, about half an octave apart, since classes are what tables depend on.
 */
export function trainTables(rows: TrainingRows, scales: Int16Array, stepIndices: readonly number[]): TableFamily {
  invariant(rows.rank % 16 === 0 && rows.rank <= scales.length, `training rank ${rows.rank}`);
  invariant(rows.coefficients.length >= rows.tokenCount * rows.rank, 'training rows are short');
  let family = familyOf(createCounts(), roundingThresholds());
  for (let round = 0; round <= ROUNDS; round++) {
    const counts = createCounts();
    for (const stepIndex of stepIndices) countRows(rows, { scales, family }, stepIndex, counts);
    family = familyOf(counts, round < ROUNDS ? null : family.thresholds);
  }
  return family;
}

/** Plain rounding with a dead zone of 0.7: where training starts. */
function roundingThresholds(): Float32Array {
  return Float32Array.from({ length: SINGLE_CLASSES * CELLS }, (_, i) => [0.7, 1.5, 0.5][i % CELLS]!);
}

function createCounts(): Counts {
  return {
    single: new Float64Array(SINGLE_CLASSES * SINGLE_SYMBOLS),
    pair: new Float64Array(PAIR_CLASSES * PAIR_SYMBOLS),
    quad: new Float64Array(QUAD_CLASSES * QUAD_SYMBOLS),
    magnitudes: new Float64Array(SINGLE_CLASSES * (SINGLE_REACH + 2)),
    offsets: new Float64Array(SINGLE_CLASSES * CELLS),
    offsetCounts: new Float64Array(SINGLE_CLASSES * CELLS),
  };
}

function countRows(rows: TrainingRows, tables: StreamTables, stepIndex: number, counts: Counts): void {
  const { rank, tokenCount, coefficients } = rows;
  const step = 2 ** (stepIndex / 256);
  const plan = {
    groupClasses: groupClasses(tables.scales, rank, stepIndex),
    componentClasses: componentClasses(tables.scales, rank, stepIndex),
    family: tables.family,
  } as const;
  let groups = plan.groupClasses.findIndex((scaleClass) => scaleClass < CLASS_MIN);
  if (groups < 0) groups = rank / GROUP_SIZE;
  const integers = new Int32Array(rank);
  for (let t = 0; t < tokenCount; t++) {
    quantiseToken(coefficients, t * rank, groups, 0, step, plan as WtcPlan, integers);
    countToken(integers, groups, plan, counts);
    countOffsets(coefficients, t * rank, integers, groups, 1 / step, plan, counts);
  }
}

type Classes = Pick<WtcPlan, 'groupClasses' | 'componentClasses'>;

function countToken(integers: Int32Array, groups: number, classes: Classes, counts: Counts): void {
  for (let g = 0; g < groups; g++) {
    const i = g * GROUP_SIZE;
    const scaleClass = classes.groupClasses[g]!;
    if (scaleClass <= QUAD_CLASS_MAX) {
      const symbol = quadSymbol(integers[i]!, integers[i + 1]!, integers[i + 2]!, integers[i + 3]!);
      counts.quad[(scaleClass - CLASS_MIN) * QUAD_SYMBOLS + symbol]!++;
      if (symbol === QUAD_ESCAPE) for (let j = 0; j < 4; j++) countSingle(integers[i + j]!, scaleClass, counts);
    } else if (scaleClass <= PAIR_CLASS_MAX) {
      for (let j = i; j < i + 4; j += 2) {
        const a = integers[j]!;
        const b = integers[j + 1]!;
        const escapes = a < -2 || a > 2 || b < -2 || b > 2;
        const symbol = escapes ? PAIR_ESCAPE : 5 * a + b + 12;
        counts.pair[(scaleClass - LOWEST_PAIR_CLASS) * PAIR_SYMBOLS + symbol]!++;
        if (escapes) {
          countSingle(a, scaleClass, counts);
          countSingle(b, scaleClass, counts);
        }
      }
    } else {
      for (let j = i; j < i + 4; j++) countSingle(integers[j]!, classes.componentClasses[j]!, counts);
    }
  }
}

function countSingle(k: number, scaleClass: number, counts: Counts): void {
  // Classes with raw bits share the tables of the highest octave, which have enough rows of their own.
  if (scaleClass > SINGLE_CLASS_MAX || scaleClass < CLASS_MIN) return;
  const symbol = k < -SINGLE_REACH || k > SINGLE_REACH ? SINGLE_ESCAPE : k + SINGLE_REACH;
  counts.single[(scaleClass - CLASS_MIN) * SINGLE_SYMBOLS + symbol]!++;
}

function countOffsets(
  coefficients: Float32Array,
  offset: number,
  integers: Int32Array,
  groups: number,
  inverse: number,
  { groupClasses: ofGroups, componentClasses: ofComponents }: Classes,
  counts: Counts,
): void {
  for (let i = 0; i < groups * GROUP_SIZE; i++) {
    const groupClass = ofGroups[i >> 2]!;
    const scaleClass = groupClass <= PAIR_CLASS_MAX ? groupClass : ofComponents[i]!;
    if (scaleClass > SINGLE_CLASS_MAX || scaleClass < CLASS_MIN) continue;
    const row = scaleClass - CLASS_MIN;
    const k = Math.abs(integers[i]!);
    counts.magnitudes[row * (SINGLE_REACH + 2) + Math.min(k, SINGLE_REACH + 1)]!++;
    if (k === 0) continue;
    const cell = row * CELLS + Math.min(k, CELLS) - 1;
    counts.offsets[cell]! += Math.abs(coefficients[offset + i]!) * inverse - k;
    counts.offsetCounts[cell]!++;
  }
}

/** A family from counts; `thresholds` null derives them from the counts' code lengths. */
function familyOf(counts: Counts, thresholds: Float32Array | null): TableFamily {
  const centroids = new Float32Array(SINGLE_CLASSES * CELLS);
  for (let i = 0; i < centroids.length; i++) {
    // 20 samples' worth of doubt holds rare cells near their integer.
    const mean = counts.offsets[i]! / (counts.offsetCounts[i]! + 20);
    centroids[i] = Math.max(-0.5, Math.min(0.5, mean));
  }
  const single = new Uint16Array(counts.single.length);
  const pair = new Uint16Array(counts.pair.length);
  const quad = new Uint16Array(counts.quad.length);
  for (let row = 0; row < SINGLE_CLASSES; row++) {
    single.set(singleTable(counts.single, row), row * SINGLE_SYMBOLS);
  }
  for (let row = 0; row < PAIR_CLASSES; row++) pair.set(pairTable(counts.pair, row), row * PAIR_SYMBOLS);
  for (let row = 0; row < QUAD_CLASSES; row++) quad.set(quadTable(counts.quad, row), row * QUAD_SYMBOLS);
  return Object.freeze({
    single,
    pair,
    quad,
    centroids,
    thresholds: thresholds ?? deriveThresholds(counts.magnitudes, centroids),
  });
}

/**
 * Where two neighbouring integers cost alike: (u − r)² + weight · bits. Bits are those of the marginal distribution of
 * the class. f32[SINGLE_CLASSES, CELLS].
 */
function deriveThresholds(magnitudes: Float64Array, centroids: Float32Array): Float32Array {
  const thresholds = new Float32Array(SINGLE_CLASSES * CELLS);
  for (let row = 0; row < SINGLE_CLASSES; row++) {
    const prior = laplace(row + CLASS_MIN);
    const count = (k: number): number =>
      magnitudes[row * (SINGLE_REACH + 2) + k]! + PRIOR_WEIGHT * prior(k) * (k ? 2 : 1);
    const bits = (k: number): number => -Math.log2(count(k) / (k === 0 ? 1 : 2));
    const [one, two, more] = [0, 1, 2].map((cell) => centroids[row * CELLS + cell]!) as [number, number, number];
    const r1 = 1 + one;
    const r2 = 2 + two;
    const zero = (r1 + (BIT_WEIGHT * (bits(1) - bits(0))) / r1) / 2;
    const middle = (r1 + r2) / 2 + (BIT_WEIGHT * (bits(2) - bits(1))) / (2 * (r2 - r1));
    const above = 0.5 + more + (BIT_WEIGHT * (bits(3) - bits(2))) / 2;
    thresholds[row * CELLS] = clamp(zero, 0.5, 1.25);
    thresholds[row * CELLS + 1] = clamp(middle, 1.3, 2.2);
    thresholds[row * CELLS + 2] = clamp(above, 0.4, 0.9);
  }
  return thresholds;
}

function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}

/** Probability of ±k (one sign) for a Laplacian of σ = 2^(class / 4) steps, dead zone 0.7. */
function laplace(scaleClass: number): (k: number) => number {
  const decay = Math.SQRT2 / 2 ** (scaleClass / 4);
  const tail = (u: number): number => Math.exp(-decay * u) / 2;
  return (k) => {
    const magnitude = Math.abs(k);
    if (magnitude === 0) return 1 - 2 * tail(0.7);
    return tail(magnitude === 1 ? 0.7 : magnitude - 0.5) - tail(magnitude + 0.5);
  };
}

/** Both signs are equally likely: counts are shared between them before anything is rounded. */
function singleTable(counts: Float64Array, row: number): Uint16Array {
  const prior = laplace(row + CLASS_MIN);
  const at = row * SINGLE_SYMBOLS;
  const table = new Float64Array(SINGLE_SYMBOLS);
  let inside = 0;
  for (let k = -SINGLE_REACH; k <= SINGLE_REACH; k++) {
    const both = counts[at + SINGLE_REACH + k]! + counts[at + SINGLE_REACH - k]!;
    table[SINGLE_REACH + k] = both / 2 + PRIOR_WEIGHT * prior(k);
    inside += prior(k);
  }
  table[SINGLE_ESCAPE] = counts[at + SINGLE_ESCAPE]! + PRIOR_WEIGHT * Math.max(0, 1 - inside);
  return quantiseFrequencies(table);
}

function pairTable(counts: Float64Array, row: number): Uint16Array {
  const prior = laplace(row + LOWEST_PAIR_CLASS);
  const at = row * PAIR_SYMBOLS;
  const table = new Float64Array(PAIR_SYMBOLS);
  let inside = 0;
  for (let a = -2; a <= 2; a++) {
    for (let b = -2; b <= 2; b++) {
      let sum = 0;
      for (const [x, y] of [
        [a, b],
        [-a, b],
        [a, -b],
        [-a, -b],
        [b, a],
        [-b, a],
        [b, -a],
        [-b, -a],
      ] as const) {
        sum += counts[at + 5 * x + y + 12]!;
      }
      table[5 * a + b + 12] = sum / 8 + PRIOR_WEIGHT * prior(a) * prior(b);
      inside += prior(a) * prior(b);
    }
  }
  table[PAIR_ESCAPE] = counts[at + PAIR_ESCAPE]! + PRIOR_WEIGHT * Math.max(0, 1 - inside);
  return quantiseFrequencies(table);
}

function quadTable(counts: Float64Array, row: number): Uint16Array {
  const prior = laplace(row + CLASS_MIN);
  const at = row * QUAD_SYMBOLS;
  const table = new Float64Array(QUAD_SYMBOLS);
  let inside = 0;
  // One ±1, two ±1 and one ±2 are each equally likely at all places.
  for (const [first, end] of [
    [0, 1],
    [1, 9],
    [9, 33],
    [33, QUAD_ESCAPE],
  ] as const) {
    let sum = 0;
    for (let s = first; s < end; s++) sum += counts[at + s]!;
    let probability = 1;
    for (let i = 0; i < 4; i++) probability *= prior(QUAD_VALUES[4 * first + i]!);
    table.fill(sum / (end - first) + PRIOR_WEIGHT * probability, first, end);
    inside += probability * (end - first);
  }
  table[QUAD_ESCAPE] = counts[at + QUAD_ESCAPE]! + PRIOR_WEIGHT * Math.max(0, 1 - inside);
  return quantiseFrequencies(table);
}
