// Fits one stream's weighted basis: principal components of rows seen through a metric per head, so that equal errors of
// coefficients cost the output about the same. Analysis and synthesis differ: x ≈ mean + ((x − mean)·A)·S.
// Does not know: where metrics come from, files. Source: coding.md's weighted transform; PCA of (x − mean)·L.

import { KvtcError, invariant } from '../base/errors.ts';
import type { Backend, MatrixSource } from '../linalg/backend.ts';
import { denseMatrix, dot, triangleSize } from '../linalg/dense.ts';
import type { HeadMetric } from '../profile/profile.ts';
import type { BasisOptions } from './basis.ts';
import { leadingEigenvectors } from './basis.ts';
import { covarianceMatrix, meanOf } from './moments.ts';
import type { Moments } from './moments.ts';
import type { HeadMetrics } from './sensitivity-file.ts';

/** Added to a metric before it is factored, as a share of its mean diagonal: 0.1 to 5 % change little. */
const FLOOR_SHARE = 0.01;
/** The same, as a share of the mean over all heads, for heads that nothing depends on. */
const COMMON_FLOOR_SHARE = 1e-4;

export interface WeightedBasisOptions extends BasisOptions {
  /** Layers of the model; needed for groups. */
  readonly layers?: number | undefined;
  /** Bases of that many runs of adjacent layers instead of one joint basis (default 1): cheaper, and coarser. */
  readonly groups?: number | undefined;
}

export interface WeightedBasis {
  /** The rank asked for, or less where rows (minus one) or width allow no more. */
  readonly rank: number;
  /** f32[width] */
  readonly mean: Float32Array;
  /** f32[rank, width], component-major: c_i = Σ (x − mean)·analysis_i. */
  readonly analysis: Float32Array;
  /** f32[rank, width], component-major: x = mean + Σ c_i·synthesis_i. */
  readonly synthesis: Float32Array;
  /** The floored metrics that both come from: analysis = synthesis·metric, head by head. */
  readonly metric: HeadMetric;
  /** f32[rank], falling: mean squared coefficient on the calibration rows. */
  readonly variances: Float32Array;
  /** Trace of the weighted covariance. */
  readonly totalEnergy: number;
  readonly converged: boolean;
}

/** Lower factors of floored metrics, and their inverses: both f64[heads, headDim, headDim]. */
export interface MetricFactors {
  readonly heads: number;
  readonly headDim: number;
  readonly lower: Float64Array;
  readonly inverse: Float64Array;
}

/**
 * M + 1 % of its mean diagonal + a small common floor = L·Lᵀ for every head. Throws KVTC_SENSITIVITY_MALFORMED when all
 * metrics are zero or one is far from positive.
 */
export function factorMetrics({ heads, headDim, blocks }: HeadMetrics): MetricFactors {
  const size = headDim * headDim;
  invariant(blocks.length === heads * size, 'metrics have their length');
  const diagonals = Float64Array.from({ length: heads }, (_, h) => {
    let sum = 0;
    for (let d = 0; d < headDim; d++) sum += blocks[h * size + d * headDim + d]!;
    return sum / headDim;
  });
  const common = COMMON_FLOOR_SHARE * (diagonals.reduce((a, b) => a + b, 0) / heads);
  if (!(common > 0)) throw new KvtcError('KVTC_SENSITIVITY_MALFORMED', 'all metrics are zero');
  const lower = new Float64Array(heads * size);
  const inverse = new Float64Array(heads * size);
  for (let h = 0; h < heads; h++) {
    const l = lower.subarray(h * size, (h + 1) * size);
    const floor = FLOOR_SHARE * diagonals[h]! + common;
    for (let i = 0; i < headDim; i++) {
      for (let j = 0; j <= i; j++) {
        const at = h * size + i * headDim + j;
        let left = (blocks[at]! + blocks[h * size + j * headDim + i]!) / 2 + (i === j ? floor : 0);
        for (let k = 0; k < j; k++) left -= l[i * headDim + k]! * l[j * headDim + k]!;
        if (i === j && !(left > 0)) {
          throw new KvtcError('KVTC_SENSITIVITY_MALFORMED', `the metric of head ${h} is not positive`, { head: h });
        }
        l[i * headDim + j] = i === j ? Math.sqrt(left) : left / l[j * headDim + j]!;
      }
    }
    invertLower(l, inverse.subarray(h * size, (h + 1) * size), headDim);
  }
  return { heads, headDim, lower, inverse };
}

function packedMetric({ heads, headDim, lower }: MetricFactors): HeadMetric {
  const packed = new Float32Array(heads * triangleSize(headDim));
  let at = 0;
  for (let h = 0; h < heads; h++) {
    const row = (i: number): Float64Array =>
      lower.subarray((h * headDim + i) * headDim, (h * headDim + i + 1) * headDim);
    for (let i = 0; i < headDim; i++) for (let j = 0; j <= i; j++) packed[at++] = dot(row(i), row(j));
  }
  return { heads, headDim, packed };
}

/** The lower triangular inverse of a lower triangular f64[n, n]. */
function invertLower(lower: Float64Array, out: Float64Array, n: number): void {
  for (let j = 0; j < n; j++) {
    out[j * n + j] = 1 / lower[j * n + j]!;
    for (let i = j + 1; i < n; i++) {
      let sum = 0;
      for (let k = j; k < i; k++) sum += lower[i * n + k]! * out[k * n + j]!;
      out[i * n + j] = -sum / lower[i * n + i]!;
    }
  }
}

/**
 * Fits a weighted basis to the plain moments of at least two rows. With equal metrics it spans what `fitBasis` spans.
 * Takes 12·width² + 16·rank·width bytes beside the moments. Throws KVTC_CALIBRATION_TEXT_SHORT,
 * KVTC_SENSITIVITY_MALFORMED, KVTC_ABORTED, KVTC_BACKEND_FAILED.
 */
export async function fitWeightedBasis(
  moments: Moments,
  metrics: HeadMetrics,
  options: WeightedBasisOptions,
): Promise<WeightedBasis> {
  const { width } = moments.frame;
  const { layers = 1, groups = 1 } = options;
  invariant(metrics.heads * metrics.headDim === width, `metrics of ${metrics.heads} heads for width ${width}`);
  invariant(groups >= 1 && groups <= layers && metrics.heads % layers === 0, `${groups} groups of ${layers} layers`);
  if (moments.rows < 2) {
    const message = `a basis needs two rows or more, got ${moments.rows}`;
    throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', message, { rows: moments.rows });
  }
  const factors = factorMetrics(metrics);
  const covariance = await weightedCovariance(moments, factors, options.backend);
  let totalEnergy = 0;
  for (let i = 0; i < width; i++) totalEnergy += covariance[i * width + i]!;
  const rank = Math.min(options.rank, moments.rows - 1, width);
  const components: Component[] = [];
  let converged = true;
  for (let group = 0; group < groups; group++) {
    const start = (Math.floor((layers * group) / groups) * width) / layers;
    const end = (Math.floor((layers * (group + 1)) / groups) * width) / layers;
    const part = squarePart(covariance, width, start, end);
    let energy = 0;
    for (let i = start; i < end; i++) energy += covariance[i * width + i]!;
    const wanted = Math.min(rank, end - start);
    const found = await leadingEigenvectors(part, energy, wanted, options);
    converged &&= found.converged;
    for (let k = 0; k < wanted; k++) {
      const vector = found.basis.subarray(k * (end - start), (k + 1) * (end - start));
      components.push({ variance: Math.max(0, found.values[k]!), start, vector });
    }
  }
  components.sort((a, b) => b.variance - a.variance);
  const kept = components.slice(0, rank);
  const analysis = new Float32Array(rank * width);
  const synthesis = new Float32Array(rank * width);
  for (const [k, component] of kept.entries()) unweigh(component, factors, k * width, analysis, synthesis);
  return {
    rank,
    mean: meanOf(moments),
    analysis,
    synthesis,
    metric: packedMetric(factors),
    variances: Float32Array.from(kept, ({ variance }) => variance),
    totalEnergy,
    converged,
  };
}

interface Component {
  readonly variance: number;
  /** First feature of its group. */
  readonly start: number;
  /** Unit vector over the group's features, weighted. */
  readonly vector: Float32Array;
}

/** Writes L·u and L⁻ᵀ·u, head by head, into row `at` of both matrices. */
function unweigh(
  { start, vector }: Component,
  { headDim, lower, inverse }: MetricFactors,
  at: number,
  analysis: Float32Array,
  synthesis: Float32Array,
): void {
  for (let from = 0; from < vector.length; from += headDim) {
    const u = vector.subarray(from, from + headDim);
    const block = ((start + from) / headDim) * headDim * headDim;
    const to = at + start + from;
    for (let i = 0; i < headDim; i++) {
      let forward = 0;
      let back = 0;
      for (let j = 0; j <= i; j++) forward += lower[block + i * headDim + j]! * u[j]!;
      for (let j = i; j < headDim; j++) back += inverse[block + j * headDim + i]! * u[j]!;
      analysis[to + i] = forward;
      synthesis[to + i] = back;
    }
  }
}

/** Lᵀ·C·L, f32[width, width]. C is symmetric, so that two passes of "times L, then transposed" give it. */
async function weightedCovariance(
  moments: Moments,
  { heads, headDim, lower }: MetricFactors,
  backend: Backend,
): Promise<Float32Array> {
  const { width } = moments.frame;
  const source = covarianceMatrix(moments);
  const half = new Float32Array(width * width); // Lᵀ·C
  const whole = new Float32Array(width * width);
  const rows = new Float32Array(headDim * width);
  for (const [from, to] of [
    [null, half],
    [half, whole],
  ] as const) {
    for (let h = 0; h < heads; h++) {
      // Row block h of the symmetric C, or of (C·L) = (Lᵀ·C)ᵀ read as columns: x[j] = column j of block h.
      const x = new Float32Array(width * headDim);
      if (from === null) {
        await source.read(h * headDim, (h + 1) * headDim, rows);
        for (let i = 0; i < headDim; i++) {
          for (let j = 0; j < width; j++) x[j * headDim + i] = rows[i * width + j]!;
        }
      } else {
        for (let j = 0; j < width; j++) {
          x.set(from.subarray(j * width + h * headDim, j * width + (h + 1) * headDim), j * headDim);
        }
      }
      // multiply takes x·matrixᵀ; matrix = L_hᵀ.
      const transposed = new Float32Array(headDim * headDim);
      for (let i = 0; i < headDim; i++) {
        for (let j = 0; j <= i; j++) transposed[j * headDim + i] = lower[(h * headDim + i) * headDim + j]!;
      }
      const matrix = await backend.prepareMatrix(denseMatrix(transposed, headDim, headDim), 'f32');
      const product = new Float32Array(width * headDim);
      try {
        await matrix.multiply(x, width, product);
      } finally {
        matrix.close();
      }
      // product[j, i] = (C·L)[j, h·headDim + i]; kept transposed: row block h.
      for (let i = 0; i < headDim; i++) {
        const row = to.subarray((h * headDim + i) * width, (h * headDim + i + 1) * width);
        for (let j = 0; j < width; j++) row[j] = product[j * headDim + i]!;
      }
    }
  }
  return whole;
}

/** Rows and columns [start, end) of a square f32[width, width]. */
function squarePart(values: Float32Array, width: number, start: number, end: number): MatrixSource {
  const size = end - start;
  return {
    rows: size,
    columns: size,
    read: (startRow, endRow, out) => {
      for (let row = startRow; row < endRow; row++) {
        const at = (start + row) * width + start;
        out.set(values.subarray(at, at + size), (row - startRow) * size);
      }
      return Promise.resolve();
    },
  };
}
