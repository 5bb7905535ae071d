// Codes one head's rows by themselves, as a codec of that metric would: components of its weighted covariance, one step.
// What that costs by the metric is known, so a run of the model tells what the metric's unit is worth.
// Does not know: engines, layers, RoPE.

import { symmetricEigen } from '../linalg/symmetric-eigen.ts';

/** A head's weighted components. */
export interface HeadCoding {
  readonly headDim: number;
  /** f64[headDim] */
  readonly mean: Float64Array;
  /** f64[headDim], falling: variances of the weighted components. */
  readonly variances: Float64Array;
  /** f64[headDim, headDim]: component i of a row x is analysis[i]·(x − mean). */
  readonly analysis: Float64Array;
  /** f64[headDim, headDim]: row = mean + Σ component i · synthesis[i]. */
  readonly synthesis: Float64Array;
}

/** Fits to f32[tokens, headDim] and a metric L·Lᵀ; `lower` is L, `inverse` L⁻¹, both f64[headDim, headDim]. */
export function fitHeadCoding(
  rows: Float32Array,
  headDim: number,
  lower: Float64Array,
  inverse: Float64Array,
): HeadCoding {
  const tokens = rows.length / headDim;
  const mean = new Float64Array(headDim);
  for (let at = 0; at < rows.length; at++) mean[at % headDim]! += rows[at]! / tokens;
  const weighted = new Float64Array(headDim); // Lᵀ·(x − mean)
  const covariance = new Float64Array(headDim * headDim);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < headDim; i++) {
      let sum = 0;
      for (let k = i; k < headDim; k++) sum += lower[k * headDim + i]! * (rows[t * headDim + k]! - mean[k]!);
      weighted[i] = sum;
    }
    for (let i = 0; i < headDim; i++) {
      const scaled = weighted[i]! / tokens;
      for (let j = 0; j <= i; j++) covariance[i * headDim + j]! += scaled * weighted[j]!;
    }
  }
  for (let i = 0; i < headDim; i++) {
    for (let j = 0; j < i; j++) covariance[j * headDim + i] = covariance[i * headDim + j]!;
  }
  const { values, vectors } = symmetricEigen(covariance, headDim);
  const analysis = new Float64Array(headDim * headDim);
  const synthesis = new Float64Array(headDim * headDim);
  for (let i = 0; i < headDim; i++) {
    for (let d = 0; d < headDim; d++) {
      const u = vectors[i * headDim + d]!;
      for (let k = d; k < headDim; k++) analysis[i * headDim + k]! += lower[k * headDim + d]! * u;
      for (let k = 0; k <= d; k++) synthesis[i * headDim + k]! += inverse[d * headDim + k]! * u;
    }
  }
  return { headDim, mean, variances: values, analysis, synthesis };
}

/** The step at which the components of all heads take `bits` on average, by the theory of Gaussian sources. */
export function stepForBits(codings: readonly HeadCoding[], bits: number): number {
  const components = codings.reduce((sum, { headDim }) => sum + headDim, 0);
  const bitsAt = (step: number): number => {
    let sum = 0;
    for (const { variances } of codings) {
      for (const variance of variances) if (variance > step * step) sum += Math.log2(variance / (step * step)) / 2;
    }
    return sum / components;
  };
  let [low, high] = [-64, 64]; // log2
  for (let i = 0; i < 64; i++) {
    const middle = (low + high) / 2;
    if (bitsAt(2 ** middle) > bits) low = middle;
    else high = middle;
  }
  return 2 ** high;
}

/**
 * Replaces f32[tokens, headDim] by what is left of it at `step` times each token's own, f64[tokens]. Returns the mean over
 * tokens of the metric's cost of the error, over the token's step squared.
 */
export function codeHeadRows(
  rows: Float32Array,
  { headDim, mean, analysis, synthesis }: HeadCoding,
  step: number,
  tokenSteps: Float64Array,
): number {
  const levels = new Float64Array(headDim);
  let cost = 0;
  for (const [t, tokenStep] of tokenSteps.entries()) {
    const at = t * headDim;
    const own = step * tokenStep;
    for (let i = 0; i < headDim; i++) {
      let component = 0;
      for (let d = 0; d < headDim; d++) component += analysis[i * headDim + d]! * (rows[at + d]! - mean[d]!);
      levels[i] = own * Math.round(component / own);
      cost += ((component - levels[i]!) / tokenStep) ** 2;
    }
    for (let d = 0; d < headDim; d++) {
      let value = mean[d]!;
      for (let i = 0; i < headDim; i++) value += levels[i]! * synthesis[i * headDim + d]!;
      rows[at + d] = value;
    }
  }
  return cost / tokenSteps.length;
}
