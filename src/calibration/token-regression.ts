// Regression of coefficients on what token ids tell: the few features of two embeddings that save most bits, and the
// coefficients to expect with them. Does not know: where moments come from, files, how a basis is fitted.
// Source: reduced-rank regression; weights after the bits that a component takes.

import { invariant } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix, transpose, triangleSize } from '../linalg/dense.ts';
import { largeSymmetricEigen } from '../linalg/large-eigen.ts';
import type { BasisOptions } from './basis.ts';
import { leadingEigenvectors } from './basis.ts';
import type { Moments } from './moments.ts';
import { meanAboutShift } from './moments.ts';

/** Moments of the embeddings of a token and its predecessor, and of these with the rows of both streams. */
export interface TokenMoments {
  /** Numbers of one embedding; features are twice as many. */
  readonly width: number;
  /** f64[features]: means. */
  readonly mean: Float64Array;
  /** f64[features · (features + 1) / 2]: mean products. */
  readonly second: Float64Array;
  /** f32[p, features]: mean products of rows, less the moments' shift, with features. */
  readonly cross: Readonly<Record<StreamKind, Float32Array>>;
}

/** One stream's basis. */
export interface RegressedBasis {
  /** f32[rank, p]: coefficients are its products with centred rows. */
  readonly analysis: Float32Array;
  /** f32[rank]: standard deviations of coefficients, falling. */
  readonly deviations: Float32Array;
}

export interface TokenRegression {
  readonly dims: number;
  /** f32[dims, features]: z = features · u − offsets has mean 0 and, on the calibration rows, covariance 1. */
  readonly features: Float32Array;
  /** f32[dims] */
  readonly offsets: Float32Array;
  /** f32[rank, dims]: expected · z are the coefficients to expect; what is left is not correlated with z. */
  readonly expected: Readonly<Record<StreamKind, Float32Array>>;
}

/** The step that bits are weighed for: the deviation of the component at this share of the rank. */
const STEP_PLACE = 1 / 4;
/** Added to the features' covariance before it is inverted, as a share of its mean diagonal. */
const RIDGE_SHARE = 1e-3;

/**
 * Fits `dims` features to both streams at once. Takes 16·features² + 8·p·features bytes beside the moments.
 * Throws KVTC_ABORTED, KVTC_BACKEND_FAILED.
 */
export async function fitTokenRegression(
  tokens: TokenMoments,
  moments: Readonly<Record<StreamKind, Moments>>,
  bases: Readonly<Record<StreamKind, RegressedBasis>>,
  options: Omit<BasisOptions, 'rank'> & { readonly dims: number },
): Promise<TokenRegression> {
  const { backend, signal } = options;
  const count = tokens.mean.length;
  const dims = Math.min(options.dims, count);
  const whitening = await whiteningOf(tokens, backend); // [features, features]
  const found: Partial<Record<StreamKind, Float32Array>> = {};
  const gram = new Float32Array(count * count);
  for (const stream of STREAMS) {
    throwIfAborted(signal);
    const { analysis, deviations } = bases[stream];
    const width = moments[stream].frame.width;
    const cross = await times(centredCross(tokens, stream, moments[stream]), whitening, count, backend); // [p, features]
    const coefficients = await times(analysis, transpose(cross, width, count), width, backend); // [rank, features]
    const rank = deviations.length;
    const weighted = transpose(weighedByBits(coefficients, deviations, count), rank, count);
    const product = await times(weighted, weighted, rank, backend); // [features, features]
    for (let i = 0; i < gram.length; i++) gram[i]! += product[i]!;
    found[stream] = coefficients;
  }
  let energy = 0;
  for (let i = 0; i < count; i++) energy += gram[i * count + i]!;
  const { basis } = await leadingEigenvectors(denseMatrix(gram, count, count), energy, dims, {
    ...options,
    rank: dims,
  });
  const directions = basis.subarray(0, dims * count); // [dims, features], of whitened features
  const features = await times(directions, transpose(whitening, count, count), count, backend);
  const offsets = new Float32Array(dims);
  for (let d = 0; d < dims; d++) {
    let sum = 0;
    for (let f = 0; f < count; f++) sum += features[d * count + f]! * tokens.mean[f]!;
    offsets[d] = sum;
  }
  const { key, value } = found as Record<StreamKind, Float32Array>;
  const expected = {
    key: await times(key, directions, count, backend),
    value: await times(value, directions, count, backend),
  };
  return { dims, features, offsets, expected };
}

/** x f32[n, columns] · matrixᵀ, matrix f32[rows, columns]. */
async function times(x: Float32Array, matrix: Float32Array, columns: number, backend: Backend): Promise<Float32Array> {
  const rows = matrix.length / columns;
  const prepared = await backend.prepareMatrix(denseMatrix(matrix, rows, columns), 'f32');
  try {
    const out = new Float32Array((x.length / columns) * rows);
    await prepared.multiply(x, x.length / columns, out);
    return out;
  } finally {
    prepared.close();
  }
}

/**
 * f32[rank, features], each row over the root of the component's variance and a step's square: what a feature saves of a
 * component that is coded goes as its share of the variance, and of one below the step hardly anything can be saved.
 */
function weighedByBits(rows: Float32Array, deviations: Float32Array, features: number): Float32Array {
  const step = deviations[Math.floor(STEP_PLACE * deviations.length)]!;
  const out = rows.slice();
  for (const [k, deviation] of deviations.entries()) {
    const scale = 1 / Math.max(Math.hypot(deviation, step), Number.MIN_VALUE);
    for (let f = k * features; f < (k + 1) * features; f++) out[f]! *= scale;
  }
  return out;
}

/** f32[features, features] W with W·C·Wᵀ = 1 for the features' covariance C, ridge included. */
async function whiteningOf({ mean, second }: TokenMoments, backend: Backend): Promise<Float32Array> {
  const count = mean.length;
  const covariance = new Float64Array(count * count);
  let trace = 0;
  for (let i = 0; i < count; i++) {
    for (let j = 0, at = triangleSize(i); j <= i; j++, at++) {
      covariance[i * count + j] = covariance[j * count + i] = second[at]! - mean[i]! * mean[j]!;
    }
    trace += covariance[i * count + i]!;
  }
  const ridge = (RIDGE_SHARE * trace) / count;
  for (let i = 0; i < count; i++) covariance[i * count + i]! += ridge;
  const { values, vectors } = await largeSymmetricEigen(backend, covariance, count);
  for (let i = 0; i < count; i++) {
    // Without any variance there is nothing to tell, and nothing to divide by.
    const scale = values[i]! > 0 ? 1 / Math.sqrt(Math.max(values[i]!, ridge)) : 0;
    for (let f = 0; f < count; f++) vectors[i * count + f]! *= scale;
  }
  return vectors;
}

/** f32[p, features]: covariance of rows and features. */
function centredCross({ mean, cross }: TokenMoments, stream: StreamKind, moments: Moments): Float32Array {
  const count = mean.length;
  const about = meanAboutShift(moments);
  invariant(cross[stream].length === about.length * count, `${stream} products of ${count} features`);
  const out = cross[stream].slice();
  for (const [i, shifted] of about.entries()) {
    for (let f = 0; f < count; f++) out[i * count + f]! -= shifted * mean[f]!;
  }
  return out;
}
