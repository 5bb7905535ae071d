// Fits one stream's basis: the leading eigenvectors of its covariance, by block subspace iteration with the products on
// the backend and one Rayleigh-Ritz step at the end (paper §3.1 takes a randomised SVD of the rows; the same subspace).
// Does not know: where moments come from, plans, files.

import { KvtcError, invariant } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import { seededRandom } from '../base/random.ts';
import type { Backend, MatrixSource, PreparedMatrix } from '../linalg/backend.ts';
import { denseMatrix, dot, transpose } from '../linalg/dense.ts';
import { largeSymmetricEigen } from '../linalg/large-eigen.ts';
import { orthonormaliseRows } from '../linalg/orthonormal.ts';
import { covarianceMatrix, meanOf, variancesOf } from './moments.ts';
import type { Moments } from './moments.ts';

/** Up to this width all eigenvectors are computed: a second or two, and nothing to converge. */
const WHOLE_WIDTH = 1024;
/** A block above this share of the width gains nothing over the whole. */
const WHOLE_SHARE = 0.75;
/** Extra directions carried along, so that the last ones asked for converge too. */
const OVERSAMPLING = 64;
const MAX_ITERATIONS = 24;
/**
 * Where variances of a block span more than this, one sweep of Gram-Schmidt in f32 leaves so much of the largest directions
 * in the smallest that the next product is theirs again: beyond 2^-23 such directions never converge. Two sweeps do.
 */
const WIDE_SPECTRUM = 1e-5;

export interface BasisOptions extends RunOptions {
  readonly backend: Backend;
  /** Components wanted; see FittedBasis.rank. */
  readonly rank: number;
  readonly seed?: number | undefined;
  /**
   * Iteration ends when a pass adds at most this share of the energy still outside the basis (default 0.01). One more
   * pass follows, which leaves a shortfall against the best basis of that rank of about a fifth of this share of the residual.
   */
  readonly tolerance?: number | undefined;
  /** Widths up to this are solved whole (default 1 024). */
  readonly wholeWidth?: number | undefined;
}

export interface FittedBasis {
  /** The rank asked for, or less where rows (minus one), width or moving features allow no more; a warning says so. */
  readonly rank: number;
  /** f32[width] */
  readonly mean: Float32Array;
  /**
   * f32[rank, width], component-major. Rows are orthonormal to 1e-5, decorrelated on the calibration rows to 1e-4 of
   * √(λᵢ·λⱼ) and stand in falling variance; inside clusters of near-equal variance directions are arbitrary.
   */
  readonly basis: Float32Array;
  /** f32[rank], falling: mean squared coefficient of each component on the calibration rows. */
  readonly variances: Float32Array;
  /** Sum of all features' variances; the basis captures Σ variances of it. */
  readonly totalEnergy: number;
  /** Multiplications by the covariance; 0 when solved whole. */
  readonly iterations: number;
  /** Energy added by the last tested pass over the energy outside it; 0 when solved whole. */
  readonly lastGain: number;
  readonly converged: boolean;
}

/** The leading eigenpairs of a covariance. */
export interface LeadingEigen {
  /** f32[rank, width], as FittedBasis.basis. */
  readonly basis: Float32Array;
  /** f64[at least rank], falling. */
  readonly values: Float64Array;
  readonly iterations: number;
  readonly lastGain: number;
  readonly converged: boolean;
}

/**
 * Fits a basis to moments of at least two rows. Deterministic for a seed, whatever the thread count. Takes 4·width² +
 * 16·rank·width bytes beside the moments. Throws KVTC_CALIBRATION_TEXT_SHORT, KVTC_ABORTED, KVTC_BACKEND_FAILED.
 */
export async function fitBasis(moments: Moments, options: BasisOptions): Promise<FittedBasis> {
  invariant(Number.isSafeInteger(options.rank) && options.rank > 0, `rank ${options.rank}`);
  if (moments.rows < 2) {
    throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', `a basis needs two rows or more, got ${moments.rows}`, {
      rows: moments.rows,
    });
  }
  const featureVariances = variancesOf(moments);
  const moving = featureVariances.reduce((count, variance) => count + (variance > 0 ? 1 : 0), 0);
  const rank = Math.max(1, Math.min(options.rank, moments.rows - 1, moving));
  if (rank < options.rank) {
    options.onEvent?.({
      type: 'warning',
      message: `rank ${options.rank} is more than ${moments.rows} rows of ${moving} moving features can fill; fitted ${rank}`,
    });
  }
  const solved = await leadingEigenvectors(covarianceMatrix(moments), sumOf(featureVariances), rank, options);
  return {
    rank,
    mean: meanOf(moments),
    basis: solved.basis,
    variances: Float32Array.from({ length: rank }, (_, i) => Math.max(0, solved.values[i]!)),
    totalEnergy: sumOf(featureVariances),
    iterations: solved.iterations,
    lastGain: solved.lastGain,
    converged: solved.converged,
  };
}

/**
 * The `rank` leading eigenvectors of a covariance [width, width] with trace `totalEnergy`, as `fitBasis` finds them. Gives
 * a warning when they have not converged. Throws KVTC_ABORTED, KVTC_BACKEND_FAILED.
 */
export async function leadingEigenvectors(
  covariance: MatrixSource,
  totalEnergy: number,
  rank: number,
  options: BasisOptions,
): Promise<LeadingEigen> {
  const width = covariance.columns;
  const block = Math.min(width, rank + OVERSAMPLING);
  let solved: LeadingEigen;
  if (width <= (options.wholeWidth ?? WHOLE_WIDTH) || block > WHOLE_SHARE * width) {
    solved = await solveWhole(covariance, rank, options);
  } else {
    const matrix = await options.backend.prepareMatrix(covariance, 'f32');
    try {
      solved = await iterate(matrix, rank, block, totalEnergy, options);
    } finally {
      matrix.close();
    }
  }
  if (!solved.converged) {
    options.onEvent?.({
      type: 'warning',
      message: `the basis still gained ${(solved.lastGain * 100).toFixed(2)} % of the residual in the last of ${solved.iterations} passes`,
    });
  }
  return solved;
}

/** All eigenvectors of the covariance. (4/3)·width³ scalar operations: 0.5 s at 1 024, minutes at 5 760. */
async function solveWhole(covariance: MatrixSource, rank: number, options: BasisOptions): Promise<LeadingEigen> {
  const width = covariance.columns;
  const matrix = new Float64Array(width * width);
  const row = new Float32Array(width);
  for (let i = 0; i < width; i++) {
    await covariance.read(i, i + 1, row);
    matrix.set(row, i * width);
  }
  throwIfAborted(options.signal);
  progress(options, 0, 1);
  const { values, vectors } = await largeSymmetricEigen(options.backend, matrix, width);
  const basis = vectors.slice(0, rank * width);
  await orthonormaliseRows(options.backend, basis, rank, width, { sweeps: 2, seed: options.seed ?? 0 });
  progress(options, 1, 1);
  return { basis, values, iterations: 0, lastGain: 0, converged: true };
}

async function iterate(
  covariance: PreparedMatrix,
  rank: number,
  block: number,
  totalEnergy: number,
  options: BasisOptions,
): Promise<LeadingEigen> {
  const { backend, seed = 0, tolerance = 0.01 } = options;
  const width = covariance.columns;
  const random = seededRandom(seed);
  let q: Float32Array = Float32Array.from({ length: block * width }, () => random.uniform() - 0.5);
  let y: Float32Array = new Float32Array(block * width);
  let iterations = 0;
  let captured = 0;
  let lastGain = Infinity;
  let total = 10;
  const multiply = async (): Promise<Float64Array> => {
    throwIfAborted(options.signal);
    progress(options, iterations, (total = Math.max(total, iterations + 3)));
    await covariance.multiply(q, block, y);
    iterations++;
    return Float64Array.from({ length: block }, (_, i) => dot(rowOf(q, i, width), rowOf(y, i, width)));
  };
  const advance = async (sweeps: 1 | 2): Promise<void> => {
    await orthonormaliseRows(backend, y, block, width, { sweeps, seed: seed + iterations });
    [q, y] = [y, q];
  };
  await orthonormaliseRows(backend, q, block, width, { sweeps: 1, seed });
  while (iterations < MAX_ITERATIONS && lastGain > tolerance) {
    const quotients = await multiply();
    const now = sumOf(quotients);
    lastGain = Math.max(0, now - captured) / Math.max(totalEnergy - now, Number.EPSILON * totalEnergy);
    captured = now;
    const last = iterations === MAX_ITERATIONS || lastGain <= tolerance;
    const least = Math.max(
      0,
      quotients.reduce((a, b) => Math.min(a, b), Infinity),
    );
    const largest = quotients.reduce((a, b) => Math.max(a, b), 0);
    // Values under the block's least are unwanted and lie in [0, least]; shifted by half of it they shrink to at most
    // half, which nearly doubles the speed of convergence at no cost. An underestimate only shifts less.
    const shift = least / 2;
    for (let i = 0; i < y.length; i++) y[i]! -= shift * q[i]!;
    await advance(last || least < WIDE_SPECTRUM * largest ? 2 : 1);
  }
  await multiply();
  const ritz = await rayleighRitz(backend, q, y, rank, block, width);
  await orthonormaliseRows(backend, ritz.basis, rank, width, { sweeps: 2, seed });
  progress(options, total, total);
  return { ...ritz, iterations, lastGain, converged: lastGain <= tolerance };
}

/** The best `rank` directions within span(q): eigenvectors of q·C·qᵀ = q·yᵀ, rotated back. q and y f32[block, width]. */
async function rayleighRitz(
  backend: Backend,
  q: Float32Array,
  y: Float32Array,
  rank: number,
  block: number,
  width: number,
): Promise<{ basis: Float32Array; values: Float64Array }> {
  const projected = new Float32Array(block * block);
  const straight = await backend.prepareMatrix(denseMatrix(q, block, width), 'f32');
  try {
    await straight.multiply(y, block, projected);
  } finally {
    straight.close();
  }
  const symmetric = new Float64Array(block * block);
  for (let i = 0; i < block; i++) {
    for (let j = 0; j < block; j++)
      symmetric[i * block + j] = (projected[i * block + j]! + projected[j * block + i]!) / 2;
  }
  const { values, vectors } = await largeSymmetricEigen(backend, symmetric, block);
  const turned = await backend.prepareMatrix(denseMatrix(transpose(q, block, width), width, block), 'f32');
  try {
    const basis = new Float32Array(rank * width);
    await turned.multiply(vectors.subarray(0, rank * block), rank, basis);
    return { basis, values };
  } finally {
    turned.close();
  }
}

function progress(options: BasisOptions, done: number, total: number): void {
  options.onEvent?.({ type: 'progress', phase: 'basis', done, total, unit: 'passes' });
}

function rowOf(values: Float32Array, row: number, width: number): Float32Array {
  return values.subarray(row * width, (row + 1) * width);
}

function sumOf(values: Float64Array): number {
  return values.reduce((a, b) => a + b, 0);
}
