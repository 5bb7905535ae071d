// What every candidate group would cost in squared error, by simulating the quantisers on held-out coefficients
// (paper §3.2, B.17; readings R1-R4). Does not know: budgets, the dynamic programme, where coefficients come from.

import { KvtcError, invariant } from '../../base/errors.ts';
import { f16ToF32 } from '../../base/half.ts';
import type { GroupType } from './plan.ts';
import { EXPONENT_LIMIT, RANK_STEP } from './plan.ts';
import { E4M3_MAX, ROUNDING_SHIFT, SMALLEST_DIVISOR, fp8Exponent, saturatingF16, stepHalf } from './quantise.ts';

/** Groups of one component start only below this; larger groups start at multiples of 16 (R4). */
const SINGLE_COMPONENTS = 64;

/** The paper's group sizes and types; ablations take subsets, or other multiples of 16. */
const GROUP_SIZES: readonly number[] = [1, 16, 64, 256, 1024];
const GROUP_TYPES: readonly GroupType[] = ['int2', 'int4', 'fp8'];

export interface CandidateOptions {
  readonly sizes?: readonly number[] | undefined;
  readonly types?: readonly GroupType[] | undefined;
  /** Mean squared norm of the held-out rows that lies outside the basis; counts as error. 0 when undefined. */
  readonly outsideEnergy?: number | undefined;
}

/** Candidates of one size: entry j is the group at component `starts[j]`. */
export interface SizeTable {
  readonly size: number;
  readonly starts: Int32Array;
  /** Mean squared error per row of the group coded as each type. */
  readonly errors: Readonly<Record<GroupType, Float64Array>>;
  /** Static fp8 exponents (R3). */
  readonly exponents: Int8Array;
}

export interface ErrorTables {
  readonly rank: number;
  readonly rows: number;
  readonly types: readonly GroupType[];
  /** Mean square per row of each component: the error of leaving it out. f64[rank] */
  readonly energy: Float64Array;
  readonly outsideEnergy: number;
  /** By rising size. */
  readonly sizes: readonly SizeTable[];
}

/**
 * Simulates all candidate groups on held-out coefficients f32[rows, rank], components in falling variance; `rank` is a
 * multiple of 16. Sums are f64; inside a group f64 stands for the codec's f32, which moves no error by more than a
 * rounding of f32. Time: about 85 quantiser calls per coefficient and integer type.
 * Throws KVTC_ROWS_NOT_FINITE, KVTC_OPTION_INVALID.
 */
export function measureErrors(
  coefficients: Float32Array,
  rows: number,
  rank: number,
  options: CandidateOptions = {},
): ErrorTables {
  const { sizes = GROUP_SIZES, types = GROUP_TYPES, outsideEnergy = 0 } = options;
  invariant(
    rows > 0 && coefficients.length >= rows * rank,
    `${coefficients.length} coefficients for ${rows} × ${rank}`,
  );
  if (rank < RANK_STEP || rank % RANK_STEP !== 0) {
    throw new KvtcError('KVTC_OPTION_INVALID', `rank ${rank} is not a positive multiple of ${RANK_STEP}`, { rank });
  }
  const bad = sizes.find((size) => !Number.isInteger(size) || size < 1 || (size > 1 && size % RANK_STEP !== 0));
  if (bad !== undefined || new Set(sizes).size !== sizes.length || sizes.length === 0 || types.length === 0) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `group sizes ${sizes.join(', ')}: expected 1 and multiples of 16, each once`,
    );
  }
  const tables = sizes
    .toSorted((a, b) => a - b)
    .map((size): SizeTable => {
      const starts = candidateStarts(size, rank);
      const errors = {
        int2: new Float64Array(starts.length),
        int4: new Float64Array(starts.length),
        fp8: new Float64Array(starts.length),
      };
      return { size, starts, errors, exponents: new Int8Array(starts.length) };
    });
  const { energy, largest } = componentStatistics(coefficients, rows, rank);
  if (types.includes('int2') || types.includes('int4')) simulateIntegers(coefficients, rows, rank, tables);
  if (types.includes('fp8')) simulateFp8(coefficients, rows, rank, largest, tables);
  for (const { errors } of tables) {
    for (const type of GROUP_TYPES) for (let j = 0; j < errors[type].length; j++) errors[type][j]! /= rows;
  }
  return { rank, rows, types, energy, outsideEnergy, sizes: tables };
}

function candidateStarts(size: number, rank: number): Int32Array {
  if (size === 1) return Int32Array.from({ length: Math.min(SINGLE_COMPONENTS, rank) }, (_, i) => i);
  return Int32Array.from({ length: Math.max(0, (rank - size) / RANK_STEP + 1) }, (_, i) => i * RANK_STEP);
}

function componentStatistics(
  coefficients: Float32Array,
  rows: number,
  rank: number,
): { energy: Float64Array; largest: Float64Array } {
  const energy = new Float64Array(rank);
  const largest = new Float64Array(rank);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let c = 0; c < rank; c++, at++) {
      const value = coefficients[at]!;
      energy[c]! += value * value;
      const magnitude = Math.abs(value);
      if (magnitude > largest[c]!) largest[c] = magnitude;
    }
  }
  const index = energy.findIndex((sum) => !Number.isFinite(sum));
  if (index >= 0) {
    throw new KvtcError('KVTC_ROWS_NOT_FINITE', `held-out coefficients of component ${index} are not finite`, {
      component: index,
    });
  }
  for (let c = 0; c < rank; c++) energy[c]! /= rows;
  return { energy, largest };
}

/** Squared errors of the group last simulated. */
const simulated = { int2: 0, int4: 0 };

function simulateIntegers(x: Float32Array, rows: number, rank: number, tables: readonly SizeTable[]): void {
  const blocks = rank / RANK_STEP;
  const mins = new Float64Array(blocks);
  const maxs = new Float64Array(blocks);
  for (let row = 0; row < rows; row++) {
    const base = row * rank;
    for (let block = 0, at = base; block < blocks; block++) {
      let min = x[at]!;
      let max = min;
      for (const end = at + RANK_STEP; at < end; at++) {
        const value = x[at]!;
        if (value < min) min = value;
        if (value > max) max = value;
      }
      mins[block] = min;
      maxs[block] = max;
    }
    for (const { size, starts, errors } of tables) {
      const { int2, int4 } = errors;
      const span = size / RANK_STEP;
      for (let j = 0; j < starts.length; j++) {
        const from = base + starts[j]!;
        let min = size === 1 ? x[from]! : mins[j]!;
        let max = size === 1 ? x[from]! : maxs[j]!;
        for (let block = j + 1; block < j + span; block++) {
          if (mins[block]! < min) min = mins[block]!;
          if (maxs[block]! > max) max = maxs[block]!;
        }
        simulateGroup(x, from, from + size, min, max);
        int2[j]! += simulated.int2;
        int4[j]! += simulated.int4;
      }
    }
  }
}

function simulateGroup(x: Float32Array, from: number, end: number, min: number, max: number): void {
  const minHalf = saturatingF16(min);
  const base = f16ToF32(minHalf);
  const step2 = f16ToF32(stepHalf(max, minHalf, 3));
  const step4 = f16ToF32(stepHalf(max, minHalf, 15));
  const scale2 = 1 / Math.max(step2, SMALLEST_DIVISOR);
  const scale4 = 1 / Math.max(step4, SMALLEST_DIVISOR);
  let sum2 = 0;
  let sum4 = 0;
  const below = min - base;
  const above = max - base;
  if (below * scale4 >= -0.5 && above * scale4 <= 15.5 && below * scale2 >= -0.5 && above * scale2 <= 3.5) {
    // No value can leave the code range, so nothing needs clamping.
    for (let i = from; i < end; i++) {
      const offset = x[i]! - base;
      const error2 = offset - (offset * scale2 + ROUNDING_SHIFT - ROUNDING_SHIFT) * step2;
      const error4 = offset - (offset * scale4 + ROUNDING_SHIFT - ROUNDING_SHIFT) * step4;
      sum2 += error2 * error2;
      sum4 += error4 * error4;
    }
  } else {
    for (let i = from; i < end; i++) {
      const offset = x[i]! - base;
      const error2 = offset - clampedCode(offset * scale2, 3) * step2;
      const error4 = offset - clampedCode(offset * scale4, 15) * step4;
      sum2 += error2 * error2;
      sum4 += error4 * error4;
    }
  }
  simulated.int2 = sum2;
  simulated.int4 = sum4;
}

function clampedCode(scaled: number, levels: number): number {
  return scaled <= 0 ? 0 : scaled >= levels ? levels : scaled + ROUNDING_SHIFT - ROUNDING_SHIFT;
}

/** A component's fp8 error depends on its group only through the exponent, so it is summed once for each exponent. */
function simulateFp8(
  x: Float32Array,
  rows: number,
  rank: number,
  largest: Float64Array,
  tables: readonly SizeTable[],
): void {
  const needed = new Map<number, Uint8Array>();
  for (const { size, starts, exponents } of tables) {
    for (let j = 0; j < starts.length; j++) {
      const start = starts[j]!;
      let most = 0;
      for (let c = start; c < start + size; c++) if (largest[c]! > most) most = largest[c]!;
      const exponent = Math.min(fp8Exponent(most), EXPONENT_LIMIT);
      exponents[j] = exponent;
      let wanted = needed.get(exponent);
      if (wanted === undefined) needed.set(exponent, (wanted = new Uint8Array(rank)));
      wanted.fill(1, start, start + size);
    }
  }
  const sums = new Map<number, Float64Array>();
  for (const [exponent, wanted] of needed) sums.set(exponent, fp8Errors(x, rows, rank, exponent, wanted));
  for (const { size, starts, errors, exponents } of tables) {
    for (let j = 0; j < starts.length; j++) {
      const sum = sums.get(exponents[j]!);
      invariant(sum !== undefined, 'an exponent was not simulated');
      let total = 0;
      for (let c = starts[j]!; c < starts[j]! + size; c++) total += sum[c]!;
      errors.fp8[j] = total;
    }
  }
}

function fp8Errors(x: Float32Array, rows: number, rank: number, exponent: number, wanted: Uint8Array): Float64Array {
  const sums = new Float64Array(rank);
  const scale = 2 ** -exponent;
  const unscale = 2 ** (2 * exponent);
  for (let c = 0; c < rank;) {
    if (wanted[c] === 0) {
      c++;
      continue;
    }
    let end = c + 1;
    while (end < rank && wanted[end] === 1) end++;
    for (let row = 0; row < rows; row++) {
      const base = row * rank;
      for (let i = c; i < end; i++) {
        const value = x[base + i]! * scale;
        const magnitude = Math.abs(value);
        let error;
        if (magnitude > E4M3_MAX) error = magnitude - E4M3_MAX;
        else if (magnitude < 2 ** -6) error = value * 512 - (value * 512 + ROUNDING_SHIFT - ROUNDING_SHIFT);
        else {
          // Splitting off 49 of a double's 53 bits leaves E4M3's four; ties may go either way, their error is the same.
          const split = value * FOUR_BITS;
          error = value - (split - (split - value));
        }
        if (magnitude < 2 ** -6) error /= 512;
        sums[i]! += error * error;
      }
    }
    for (let i = c; i < end; i++) sums[i]! *= unscale;
    c = end;
  }
  return sums;
}

const FOUR_BITS = 2 ** 49 + 1;
