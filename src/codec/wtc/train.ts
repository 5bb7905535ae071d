// Trains a family of tables on calibration coefficients: counts at many steps, tables from counts, thresholds from
// tables, a few times over (entropy-constrained quantisation). Does not know where coefficients come from.

import { invariant } from '../../base/errors.ts';
import { quantiseFrequencies } from '../entropy/rans.ts';
import { CLASS_MIN, componentClasses, pairClasses, stepOf } from './classes.ts';
import type { TableFamily } from './family.ts';
import { CELLS } from './family.ts';
import { expectedMagnitudes } from './plan.ts';
import type { SymbolPlan, TokenSteps } from './symbolise.ts';
import { createTokenSteps, symboliseToken, weightRow } from './symbolise.ts';
import {
  ENTRY_STRIDE,
  PAIR_CLASS_MAX,
  SINGLE_REACH,
  SINGLE_TABLES,
  TABLES,
  pairReach,
  symbolCount,
} from './symbols.ts';

/**
 * Weight of one bit of code against squared error, in Δ². ln 2 / 6 is the slope of a fine uniform quantiser; measured
 * on SmolLM2's rows, 0.08 to 0.2 differ by about 1 % of rate at most (docs/levers.md).
 */
const BIT_WEIGHT = Math.LN2 / 6;

/** Rounds of counting after the first; the thresholds move by less than 0.01 after the third. */
const ROUNDS = 4;

/** Counts of a Laplacian of the class's σ that every table starts with, so that unseen classes still code well. */
const PRIOR_WEIGHT = 8;

/** Units of weighted magnitudes: a component of a high class is expected to show this much. */
const MAGNITUDE_UNIT = 16;

/** Below this expected |k| a unit of k counts alike in all classes: there it is the number of events that tells. */
const SMALL_MAGNITUDE = 0.7;

/** Magnitudes are averaged up to this. */
const MAGNITUDE_CAP = 40;

export interface TrainingRows {
  /** f32[tokenCount, rank], row-major, finite. Best not the rows the basis was fitted on. */
  readonly coefficients: Float32Array;
  readonly tokenCount: number;
  /** Multiple of 16. */
  readonly rank: number;
}

interface Counts {
  /** f64[TABLES · ENTRY_STRIDE] */
  readonly entries: Float64Array;
  /** f64[SINGLE_TABLES, MAGNITUDES] by |k|, however coded, by the class that chose: for thresholds. */
  readonly magnitudes: Float64Array;
  /** f64[SINGLE_TABLES, CELLS]: sums of |c| / step − |k| and their number. */
  readonly offsets: Float64Array;
  readonly offsetCounts: Float64Array;
  /** f64[SINGLE_TABLES]: sums of |k|, and their number, by the class before a token's own shift. */
  readonly totals: Float64Array;
  readonly totalCounts: Float64Array;
}

const MAGNITUDES = 5;

/**
 * Tables for one stream. `scales` i16[≥ rank] from scaleIndices; `stepIndices` should span the steps the profile will be
 * used with, an octave beyond at both ends, about half an octave apart, since classes are what tables depend on.
 * `bitWeight`: of a bit against squared error in Δ², where thresholds are placed.
 */
export function trainTables(
  rows: TrainingRows,
  scales: Int16Array,
  stepIndices: readonly number[],
  bitWeight: number = BIT_WEIGHT,
): TableFamily {
  invariant(rows.rank % 16 === 0 && rows.rank <= scales.length, `training rank ${rows.rank}`);
  invariant(rows.coefficients.length >= rows.tokenCount * rows.rank, 'training rows are short');
  const token = createTokenSteps(rows.rank);
  let family = familyOf(createCounts(), null, bitWeight);
  for (let round = 0; round <= ROUNDS; round++) {
    const counts = createCounts();
    for (const stepIndex of stepIndices) countRows(rows, scales, family, stepIndex, token, counts);
    family = familyOf(counts, round < ROUNDS ? null : family, bitWeight);
  }
  return family;
}

function createCounts(): Counts {
  return {
    entries: new Float64Array(TABLES * ENTRY_STRIDE),
    magnitudes: new Float64Array(SINGLE_TABLES * MAGNITUDES),
    offsets: new Float64Array(SINGLE_TABLES * CELLS),
    offsetCounts: new Float64Array(SINGLE_TABLES * CELLS),
    totals: new Float64Array(SINGLE_TABLES),
    totalCounts: new Float64Array(SINGLE_TABLES),
  };
}

function countRows(
  rows: TrainingRows,
  scales: Int16Array,
  family: TableFamily,
  stepIndex: number,
  token: TokenSteps,
  counts: Counts,
): void {
  const { rank, tokenCount, coefficients } = rows;
  const ofComponents = componentClasses(scales, rank, stepIndex);
  const ofPairs = pairClasses(scales, rank, stepIndex);
  const expected = expectedMagnitudes(ofComponents, ofPairs, family.expectations, 0);
  const plan: SymbolPlan = {
    cut: CLASS_MIN,
    componentClasses: ofComponents,
    pairClasses: ofPairs,
    family,
    expectedMagnitudes: () => expected,
  };
  const step = stepOf(stepIndex);
  for (let t = 0; t < tokenCount; t++) {
    symboliseToken(coefficients, t * rank, 0, step, plan, token);
    for (let i = 0; i < token.stepCount; i++) {
      const entry = token.steps[i]!;
      if (entry >= 0) counts.entries[entry]!++;
    }
    countComponents(coefficients, t * rank, 1 / step, token, plan, counts);
  }
}

function countComponents(
  coefficients: Float32Array,
  offset: number,
  inverse: number,
  { integers, rows, componentCount }: TokenSteps,
  plan: SymbolPlan,
  counts: Counts,
): void {
  for (let i = 0; i < componentCount; i++) {
    const row = rows[i]!;
    const k = Math.abs(integers[i]!);
    const pairClass = plan.pairClasses[i >> 1]!;
    const own = weightRow(pairClass > PAIR_CLASS_MAX ? plan.componentClasses[i]! : pairClass);
    counts.totals[own]! += Math.min(k, MAGNITUDE_CAP);
    counts.totalCounts[own]!++;
    counts.magnitudes[row * MAGNITUDES + Math.min(k, MAGNITUDES - 1)]!++;
    if (k === 0) continue;
    const cell = row * CELLS + Math.min(k, CELLS) - 1;
    counts.offsets[cell]! += Math.abs(coefficients[offset + i]!) * inverse - k;
    counts.offsetCounts[cell]!++;
  }
}

/**
 * A family from counts. `chose` is the family whose thresholds and shifts made the counts: its thresholds, weights and
 * expectations are kept, so that tables and centroids fit them; null derives new ones.
 */
function familyOf(counts: Counts, chose: TableFamily | null, bitWeight: number): TableFamily {
  const frequencies = new Uint16Array(TABLES * ENTRY_STRIDE);
  for (let table = 0; table < TABLES; table++) {
    frequencies.set(quantiseFrequencies(smoothCounts(counts.entries, table)), table * ENTRY_STRIDE);
  }
  // 20 samples' worth of doubt holds rare cells near their integer.
  const centroids = counts.offsets.map((sum, i) => clamp(sum / (counts.offsetCounts[i]! + 20), -0.5, 0.5));
  const expectedK = Float64Array.from({ length: SINGLE_TABLES }, (_, row) => {
    const prior = laplace(row + CLASS_MIN);
    let mean = 0;
    for (let k = 1; k <= MAGNITUDE_CAP; k++) mean += 2 * k * prior(k);
    return (counts.totals[row]! + PRIOR_WEIGHT * mean) / (counts.totalCounts[row]! + PRIOR_WEIGHT);
  });
  const weight = (row: number): number => Math.round(MAGNITUDE_UNIT / Math.max(expectedK[row]!, SMALL_MAGNITUDE));
  const rowsOf = (value: (row: number) => number): Uint16Array =>
    Uint16Array.from({ length: SINGLE_TABLES }, (_, row) => value(row));
  return Object.freeze({
    frequencies,
    centroids: Float32Array.from(centroids),
    thresholds: chose?.thresholds ?? deriveThresholds(counts.magnitudes, centroids, bitWeight),
    weights: chose?.weights ?? rowsOf(weight),
    expectations: chose?.expectations ?? rowsOf((row) => Math.round(weight(row) * expectedK[row]!)),
  });
}

/**
 * Where two neighbouring integers cost alike: (u − r)² + weight · bits. Bits are those of the marginal distribution of
 * the class. f32[SINGLE_TABLES, CELLS].
 */
function deriveThresholds(magnitudes: Float64Array, centroids: Float64Array, bitWeight: number): Float32Array {
  const thresholds = new Float32Array(SINGLE_TABLES * CELLS);
  for (let row = 0; row < SINGLE_TABLES; row++) {
    const prior = laplace(row + CLASS_MIN);
    const bits = (k: number): number => {
      const count = magnitudes[row * MAGNITUDES + k]! / (k === 0 ? 1 : 2) + PRIOR_WEIGHT * prior(k);
      return -Math.log2(count);
    };
    const [one, two, more] = centroids.subarray(row * CELLS, (row + 1) * CELLS) as unknown as [number, number, number];
    const r1 = 1 + one;
    const r2 = 2 + two;
    const zero = (r1 + (bitWeight * (bits(1) - bits(0))) / r1) / 2;
    const middle = (r1 + r2) / 2 + (bitWeight * (bits(2) - bits(1))) / (2 * (r2 - r1));
    const above = 0.5 + more + (bitWeight * (bits(3) - bits(2))) / 2;
    thresholds[row * CELLS] = clamp(zero, 0.5, 1.25);
    thresholds[row * CELLS + 1] = clamp(middle, 1.3, 2.2);
    thresholds[row * CELLS + 2] = clamp(above, 0.4, 0.9);
  }
  return thresholds;
}

function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}

/** Probability of k (one sign) for a Laplacian of σ = 2^(class / 4) steps, dead zone 0.7. */
function laplace(scaleClass: number): (k: number) => number {
  const decay = Math.SQRT2 / 2 ** (scaleClass / 4);
  const tail = (u: number): number => Math.exp(-decay * u) / 2;
  return (k) => {
    const magnitude = Math.abs(k);
    if (magnitude === 0) return 1 - 2 * tail(0.7);
    return tail(magnitude === 1 ? 0.7 : magnitude - 0.5) - tail(magnitude + 0.5);
  };
}

/**
 * Counts of one table's symbols with the prior added. Signs, and the order within a pair, carry nothing: counts are
 * shared between what differs in them alone.
 */
function smoothCounts(entries: Float64Array, table: number): Float64Array {
  const counts = entries.subarray(table * ENTRY_STRIDE, table * ENTRY_STRIDE + symbolCount(table));
  const smooth = new Float64Array(counts.length);
  const escape = counts.length - 1;
  const isSingle = table < SINGLE_TABLES;
  const prior = laplace((isSingle ? table : table - SINGLE_TABLES) + CLASS_MIN);
  let inside = 0;
  if (isSingle) {
    for (let k = -SINGLE_REACH; k <= SINGLE_REACH; k++) {
      smooth[SINGLE_REACH + k] = (counts[SINGLE_REACH + k]! + counts[SINGLE_REACH - k]!) / 2 + PRIOR_WEIGHT * prior(k);
      inside += prior(k);
    }
  } else {
    const reach = pairReach(table - SINGLE_TABLES + CLASS_MIN);
    const at = (a: number, b: number): number => counts[(2 * reach + 1) * (a + reach) + b + reach]!;
    for (let a = -reach; a <= reach; a++) {
      for (let b = -reach; b <= reach; b++) {
        const both = at(a, b) + at(-a, b) + at(a, -b) + at(-a, -b) + at(b, a) + at(-b, a) + at(b, -a) + at(-b, -a);
        const symbol = (2 * reach + 1) * (a + reach) + b + reach;
        smooth[symbol] = both / 8 + PRIOR_WEIGHT * prior(a) * prior(b);
        inside += prior(a) * prior(b);
      }
    }
  }
  smooth[escape] = counts[escape]! + PRIOR_WEIGHT * Math.max(0, 1 - inside);
  return smooth;
}
