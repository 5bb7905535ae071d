// Predicts from a token's own leading coefficients and its distance to the end how much its errors will cost, and turns
// that into a class of steps: tokens that matter get a finer step. The class is stored, so that only encoders predict.
// Does not know: how importances were measured, codecs. Source: evidence.md's token steps.

import { KvtcError, invariant } from '../base/errors.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { TOKEN_CLASS_MIN } from '../codec/wtc/classes.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix, transpose } from '../linalg/dense.ts';
import type { TokenPredictor } from '../profile/profile.ts';

/** Leading components of each stream that a prediction looks at. */
export const PREDICTOR_COMPONENTS = 96;
/** Step classes are half octaves within ± this; the newest tokens' may be finer, as fine as a class can be. */
const TOKEN_CLASS_LIMIT = 4;

const CHUNK_TOKENS = 2048;
/** Share of the examples, the last ones, that only measure R². */
const HELD_OUT_SHARE = 0.15;
/** Added to the diagonal of the features' covariance, as a share of its mean. */
const RIDGE_SHARE = 1e-4;
/** Importances under this share of their mean count as this. */
const IMPORTANCE_FLOOR = 1e-6;

/** Coefficients of the same tokens in both streams: f32[tokens, rank], the rank of each stream its own. */
export interface TokenCoefficients {
  readonly tokens: number;
  readonly key: Float32Array;
  readonly value: Float32Array;
  /** f32[tokens]; where it is missing a predictor is fitted without, and one that knows recency takes all for the mean. */
  readonly recency?: Float32Array | undefined;
}

/** Mean of log2(1 / u) for u even in (0, 1]. */
const MEAN_RECENCY = 1 / Math.LN2;

/**
 * How near token `position` is to the end of `tokenCount`: log2 of tokenCount over the distance, less its mean over all
 * tokens, so that it moves bits between tokens at any length. Importance goes about as one over the distance
 * (docs/levers.md).
 */
export function recencyAt(position: number, tokenCount: number): number {
  return Math.log2(tokenCount / (tokenCount - position)) - MEAN_RECENCY;
}

/** recencyAt of a range's tokens, f32[tokens of the range]. */
export function recencies({ startToken, endToken }: TokenRange, tokenCount: number): Float32Array {
  return Float32Array.from({ length: endToken - startToken }, (_, t) => recencyAt(startToken + t, tokenCount));
}

export interface PredictorFit {
  readonly predictor: TokenPredictor;
  /** Share of the variance of log2 importance that is predicted, on held-out tokens. */
  readonly r2: Readonly<Record<StreamKind, number>>;
}

/**
 * A document's importances f32[tokens] over their geometric mean, what is not finite and above 0 left alone. How much all
 * of a text matters, how surely it is continued, shows little in single tokens: a fit that has to predict it as well sees
 * tokens' own importances worse (docs/levers.md).
 */
export function overGeometricMean(importance: Float32Array): Float32Array {
  const known = importance.filter((value) => value > 0 && Number.isFinite(value));
  const mean = 2 ** (known.reduce((sum, value) => sum + Math.log2(value), 0) / known.length);
  return importance.map((value) => value / mean);
}

/**
 * Throws KVTC_CALIBRATION_TEXT_SHORT where so many tokens of known importance are fewer than ten examples per weight, some
 * of them left to measure R².
 */
export function checkExamples(tokens: number, components: number, recency: boolean): void {
  const least = 10 * (featureCount(Math.min(PREDICTOR_COMPONENTS, components), recency) + 1);
  if (Math.floor(tokens * (1 - HELD_OUT_SHARE)) >= least) return;
  const message = `${tokens} tokens with an importance are too few; ${Math.ceil(least / (1 - HELD_OUT_SHARE))} are needed`;
  throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', message, { tokens });
}

/** Tokens whose importance is known for both streams. */
export function knownTokens({ key, value }: Readonly<Record<StreamKind, Float32Array>>): number[] {
  const known: number[] = [];
  for (let t = 0; t < key.length; t++) if (Number.isFinite(key[t]) && Number.isFinite(value[t])) known.push(t);
  return known;
}

/**
 * Ridge regression of log2 importance on features of both streams' leading coefficients. `importance` f32[tokens] per
 * stream; tokens without a finite one are left out. Throws KVTC_CALIBRATION_TEXT_SHORT for fewer than ten examples per
 * weight.
 */
export async function fitTokenPredictor(
  coefficients: TokenCoefficients,
  importance: Readonly<Record<StreamKind, Float32Array>>,
  deviations: Readonly<Record<StreamKind, Float32Array>>,
  backend: Backend,
): Promise<PredictorFit> {
  const components = Math.min(PREDICTOR_COMPONENTS, ...STREAMS.map((stream) => deviations[stream].length));
  const kept: Record<StreamKind, Float32Array> = {
    key: deviations.key.slice(0, components),
    value: deviations.value.slice(0, components),
  };
  const recency = coefficients.recency !== undefined;
  const size = featureCount(components, recency) + 1;
  const used = knownTokens(importance);
  checkExamples(used.length, components, recency);
  const training = Math.floor(used.length * (1 - HELD_OUT_SHARE));
  const targets = {
    key: logImportance(importance.key, used),
    value: logImportance(importance.value, used),
  };
  const gram = new Float64Array(size * size);
  const sums = { key: new Float64Array(size), value: new Float64Array(size) };
  for (let start = 0; start < training; start += CHUNK_TOKENS) {
    const count = Math.min(CHUNK_TOKENS, training - start);
    const features = featureRows(coefficients, used.slice(start, start + count), kept, components, recency);
    const turned = transpose(features, count, size);
    const matrix = await backend.prepareMatrix(denseMatrix(turned, size, count), 'f32');
    const part = new Float32Array(size * size);
    try {
      await matrix.multiply(turned, size, part);
    } finally {
      matrix.close();
    }
    for (let i = 0; i < part.length; i++) gram[i]! += part[i]!;
    for (const stream of STREAMS) {
      for (let r = 0; r < count; r++) {
        const y = targets[stream][start + r]!;
        for (let f = 0; f < size; f++) sums[stream][f]! += features[r * size + f]! * y;
      }
    }
  }
  const weights = {
    key: solveRidge(gram, sums.key, size, training),
    value: solveRidge(gram, sums.value, size, training),
  };
  const r2: Record<StreamKind, number> = { key: 0, value: 0 };
  const held = used.slice(training);
  const features = featureRows(coefficients, held, kept, components, recency);
  for (const stream of STREAMS) {
    const truth = targets[stream].subarray(training);
    const offset = weights[stream].mean;
    const mean = truth.reduce((a, b) => a + b, 0) / truth.length;
    let wrong = 0;
    let spread = 0;
    for (let r = 0; r < held.length; r++) {
      const guess = predict(features, r * size, weights[stream].weights, size) + offset;
      wrong += (truth[r]! - guess) ** 2;
      spread += (truth[r]! - mean) ** 2;
    }
    r2[stream] = 1 - wrong / spread;
  }
  return {
    predictor: {
      components,
      recency,
      deviations: kept,
      weights: { key: weights.key.weights, value: weights.value.weights },
    },
    r2,
  };
}

/**
 * Step classes i8[tokens] of both streams: step = 2^(class / 2) · base step, class = −2 · exponent · predicted log2
 * importance, rounded, within ±4 (−8 to 4 where recency is known). Exponent 0 gives all zeros, 0.5 spends as if
 * predictions were true.
 */
export function predictTokenClasses(
  predictor: TokenPredictor,
  coefficients: TokenCoefficients,
  exponent: number,
): Record<StreamKind, Int8Array> {
  const { components, recency, deviations, weights } = predictor;
  const { tokens } = coefficients;
  const size = featureCount(components, recency) + 1;
  const least = recency ? TOKEN_CLASS_MIN : -TOKEN_CLASS_LIMIT;
  const classes = { key: new Int8Array(tokens), value: new Int8Array(tokens) };
  if (exponent === 0) return classes;
  for (let start = 0; start < tokens; start += CHUNK_TOKENS) {
    const rows = Array.from({ length: Math.min(CHUNK_TOKENS, tokens - start) }, (_, i) => start + i);
    const features = featureRows(coefficients, rows, deviations, components, recency);
    for (const stream of STREAMS) {
      for (const [r, t] of rows.entries()) {
        const log2 = predict(features, r * size, weights[stream], size);
        classes[stream][t] = Math.max(least, Math.min(TOKEN_CLASS_LIMIT, Math.round(-2 * exponent * log2)));
      }
    }
  }
  return classes;
}

/** Coefficients in units of their deviation, their sizes, and the log of their mean square, for each stream; recency. */
function featureCount(components: number, recency: boolean): number {
  return 4 * components + 2 + (recency ? 1 : 0);
}

/** f32[rows, featureCount + 1], the last column ones. */
function featureRows(
  coefficients: TokenCoefficients,
  rows: readonly number[],
  deviations: Readonly<Record<StreamKind, Float32Array>>,
  components: number,
  recency: boolean,
): Float32Array {
  const size = featureCount(components, recency) + 1;
  const out = new Float32Array(rows.length * size);
  for (const [r, t] of rows.entries()) {
    let at = r * size;
    for (const stream of STREAMS) {
      const rank = coefficients[stream].length / coefficients.tokens;
      invariant(rank >= components, `rank ${rank} for ${components} components`);
      let squares = 0;
      for (let i = 0; i < components; i++) {
        const value = coefficients[stream][t * rank + i]! / Math.max(deviations[stream][i]!, 1e-30);
        out[at + i] = value;
        out[at + components + i] = Math.abs(value);
        squares += value * value;
      }
      out[at + 2 * components] = Math.log2(squares / components + 1e-3);
      at += 2 * components + 1;
    }
    if (recency) out[at++] = coefficients.recency?.[t] ?? 0;
    out[at] = 1;
  }
  return out;
}

function predict(features: Float32Array, offset: number, weights: Float32Array, size: number): number {
  let sum = 0;
  for (let f = 0; f < size; f++) sum += features[offset + f]! * weights[f]!;
  return sum;
}

function logImportance(values: Float32Array, used: readonly number[]): Float64Array {
  const mean = used.reduce((sum, t) => sum + values[t]!, 0) / used.length;
  return Float64Array.from(used, (t) => Math.log2(values[t]! / mean + IMPORTANCE_FLOOR));
}

/** Weights that predict the deviation from the mean target (bias last), from sums of f·fᵀ and f·y; and that mean. */
function solveRidge(
  gram: Float64Array,
  sums: Float64Array,
  size: number,
  count: number,
): { weights: Float32Array; mean: number } {
  const inner = size - 1; // the last feature is 1: its sums are means
  const means = Float64Array.from({ length: size }, (_, f) => gram[f * size + inner]! / count);
  const mean = sums[inner]! / count;
  const matrix = new Float64Array(inner * inner);
  const right = new Float64Array(inner);
  let trace = 0;
  for (let i = 0; i < inner; i++) {
    for (let j = 0; j < inner; j++) matrix[i * inner + j] = gram[i * size + j]! / count - means[i]! * means[j]!;
    right[i] = sums[i]! / count - means[i]! * mean;
    trace += matrix[i * inner + i]!;
  }
  const ridge = (RIDGE_SHARE * trace) / inner + 1e-9;
  for (let i = 0; i < inner; i++) matrix[i * inner + i]! += ridge;
  const solution = solvePositive(matrix, right, inner);
  let bias = 0;
  for (let i = 0; i < inner; i++) bias -= means[i]! * solution[i]!;
  return { weights: Float32Array.from([...solution, bias]), mean };
}

/** x of A·x = b for a positive definite A f64[n, n], which is overwritten by its Cholesky factor. */
function solvePositive(matrix: Float64Array, right: Float64Array, n: number): Float64Array {
  const x = right.slice();
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let left = matrix[i * n + j]!;
      for (let k = 0; k < j; k++) left -= matrix[i * n + k]! * matrix[j * n + k]!;
      matrix[i * n + j] = i === j ? Math.sqrt(Math.max(left, 1e-12)) : left / matrix[j * n + j]!;
    }
    for (let k = 0; k < i; k++) x[i]! -= matrix[i * n + k]! * x[k]!;
    x[i]! /= matrix[i * n + i]!;
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) x[i]! -= matrix[k * n + i]! * x[k]!;
    x[i]! /= matrix[i * n + i]!;
  }
  return x;
}
