// First-order cost of cache errors in one layer, from a forward pass alone: which tokens the following queries read, how
// much their output moves when a score or a value is wrong. Costs are energies of the layer's attention output in the
// residual stream; how much such an energy costs the model's output is for measure.ts to say.
// Does not know: engines, files, which tokens are what.

import { invariant } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import type { Random } from '../base/random.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix, transpose } from '../linalg/dense.ts';
import type { RopeDescription } from '../rope/description.ts';
import { undoRope } from '../rope/rotate.ts';

/** One KV head and the query heads that read it. Rows as the engine holds them, keys and queries rotated. */
export interface HeadRows {
  readonly headDim: number;
  /** f32[tokens, headDim]; position of a row = its index. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** Per query head: f32[queries, headDim] of the last `queries` tokens, and the factor L of its output Gram matrix L·Lᵀ. */
  readonly readers: readonly { readonly queries: Float32Array; readonly outputFactor: Float64Array }[];
  /** Null for models whose keys are not rotated. */
  readonly rope: RopeDescription | null;
}

export interface AttentionRange {
  /** Tokens whose errors are judged: [startToken, endToken). */
  readonly startToken: number;
  readonly endToken: number;
}

/** f64[tokens of the range] by stream. */
export type TokenCosts = Readonly<Record<StreamKind, Float64Array>>;

/** f64[headDim, headDim] by stream. */
export type CostMetrics = Readonly<Record<StreamKind, Float64Array>>;

/** What errors of one KV head's tokens cost, summed over the queries: Σ A²·‖v − o‖²_G of keys, Σ A²·tr G of values. */
export async function tokenCosts(rows: HeadRows, range: AttentionRange, backend: Backend): Promise<TokenCosts> {
  const tokens = rows.keys.length / rows.headDim;
  const count = range.endToken - range.startToken;
  const costs = { key: new Float64Array(count), value: new Float64Array(count) };
  for await (const { reader, squares, moves } of readersOf(rows, range, backend)) {
    const outputTrace = reader.outputFactor.reduce((sum, value) => sum + value * value, 0);
    for (let at = range.startToken; at < squares.length; at += tokens) {
      for (let t = 0; t < count; t++) {
        costs.key[t]! += moves[at + t]!;
        costs.value[t]! += squares[at + t]! * outputTrace;
      }
    }
  }
  return costs;
}

/**
 * What errors of one KV head cost by their direction, `tokenWeights` times as much at each token of the range: the means
 * over its tokens of Σ A²·‖v − o‖²_G·q̃·q̃ᵀ / headDim, q̃ the query turned back to the token's position, and of Σ A²·G.
 * `pairs` (query, token) pairs per query head, drawn in proportion to their weight, estimate the key metric; the value
 * metric is exact. Magnitude scaling of RoPE is kept within the queries.
 */
export async function costMetrics(
  rows: HeadRows,
  range: AttentionRange,
  tokenWeights: TokenCosts,
  draw: { readonly pairs: number; readonly random: Random },
  backend: Backend,
): Promise<CostMetrics> {
  const { headDim: dim } = rows;
  const tokens = rows.keys.length / dim;
  const count = range.endToken - range.startToken;
  const metrics = { key: new Float64Array(dim * dim), value: new Float64Array(dim * dim) };
  for await (const { reader, squares, moves } of readersOf(rows, range, backend)) {
    let mass = 0;
    for (let at = range.startToken; at < squares.length; at += tokens) {
      for (let t = 0; t < count; t++) {
        mass += squares[at + t]! * tokenWeights.value[t]!;
        moves[at + t]! *= tokenWeights.key[t]!;
      }
    }
    addGram(metrics.value, reader.outputFactor, dim, mass / count);
    addQueryMoments(metrics.key, moves, reader.queries, { ...draw, rows, range, tokens });
  }
  return metrics;
}

/** One query head's attention to the tokens of a range, f32[queries, tokens]. Outside the range nothing is promised. */
interface ReaderCosts {
  readonly reader: HeadRows['readers'][number];
  /** A² */
  readonly squares: Float32Array;
  /** A²·‖v − o‖²_G */
  readonly moves: Float32Array;
}

async function* readersOf(rows: HeadRows, range: AttentionRange, backend: Backend): AsyncGenerator<ReaderCosts> {
  const { headDim: dim, keys, values } = rows;
  const { startToken, endToken } = range;
  const tokens = keys.length / dim;
  invariant(startToken < endToken && endToken <= tokens && values.length === keys.length, 'range lies in the rows');
  const keyMatrix = await backend.prepareMatrix(denseMatrix(keys, tokens, dim), 'f32');
  try {
    for (const reader of rows.readers) {
      const queryCount = reader.queries.length / dim;
      const squares = new Float32Array(queryCount * tokens);
      await keyMatrix.multiply(reader.queries, queryCount, squares);
      causalSoftmax(squares, queryCount, tokens, 1 / Math.sqrt(dim));
      const outputs = await outputMoves(values, squares, queryCount, tokens, reader.outputFactor, dim, backend);
      const { cross: moves, valueEnergy, outputEnergy } = outputs;
      for (let q = 0; q < queryCount; q++) {
        for (let t = startToken, at = q * tokens + startToken; t < endToken; t++, at++) {
          squares[at]! *= squares[at]!;
          moves[at] = squares[at]! * Math.max(0, valueEnergy[t]! - 2 * moves[at]! + outputEnergy[q]!);
        }
      }
      yield { reader, squares, moves };
    }
  } finally {
    keyMatrix.close();
  }
}

/** Scores → attention of the last rows of a causal sequence, in place. */
function causalSoftmax(scores: Float32Array, queryCount: number, tokens: number, scale: number): void {
  for (let q = 0; q < queryCount; q++) {
    const seen = tokens - queryCount + q + 1;
    const row = scores.subarray(q * tokens, (q + 1) * tokens);
    let most = -Infinity;
    for (let t = 0; t < seen; t++) most = Math.max(most, row[t]!);
    let sum = 0;
    for (let t = 0; t < seen; t++) {
      const e = Math.exp((row[t]! - most) * scale);
      row[t] = e;
      sum += e;
    }
    const unit = 1 / sum;
    for (let t = 0; t < seen; t++) row[t]! *= unit;
    row.fill(0, seen);
  }
}

interface OutputMoves {
  /** f32[queries, tokens]: output · value, in the output's metric. */
  readonly cross: Float32Array;
  /** Squared lengths of values and outputs in that metric. */
  readonly valueEnergy: Float64Array;
  readonly outputEnergy: Float64Array;
}

async function outputMoves(
  values: Float32Array,
  attention: Float32Array,
  queryCount: number,
  tokens: number,
  outputFactor: Float64Array,
  dim: number,
  backend: Backend,
): Promise<OutputMoves> {
  const turnedFactor = transpose(Float32Array.from(outputFactor), dim, dim);
  const seen = new Float32Array(tokens * dim); // v·L
  await multiplyOnce(backend, turnedFactor, dim, dim, values, tokens, seen);
  const outputs = new Float32Array(queryCount * dim);
  await multiplyOnce(backend, transpose(seen, tokens, dim), dim, tokens, attention, queryCount, outputs);
  const cross = new Float32Array(queryCount * tokens);
  await multiplyOnce(backend, seen, tokens, dim, outputs, queryCount, cross);
  return { cross, valueEnergy: energies(seen, dim), outputEnergy: energies(outputs, dim) };
}

async function multiplyOnce(
  backend: Backend,
  matrix: Float32Array,
  rows: number,
  columns: number,
  x: Float32Array,
  n: number,
  out: Float32Array,
): Promise<void> {
  const prepared = await backend.prepareMatrix(denseMatrix(matrix, rows, columns), 'f32');
  try {
    await prepared.multiply(x, n, out);
  } finally {
    prepared.close();
  }
}

function energies(rows: Float32Array, dim: number): Float64Array {
  return Float64Array.from({ length: rows.length / dim }, (_, r) => {
    let sum = 0;
    for (let d = r * dim; d < (r + 1) * dim; d++) sum += rows[d]! * rows[d]!;
    return sum;
  });
}

interface PairDraw {
  readonly rows: HeadRows;
  readonly range: AttentionRange;
  readonly tokens: number;
  readonly pairs: number;
  readonly random: Random;
}

/** Adds Σ weight·q̃·q̃ᵀ / dim / tokens of the range, over pairs drawn at even steps of the summed weight. */
function addQueryMoments(
  metric: Float64Array,
  weights: Float32Array,
  queries: Float32Array,
  { rows, range, tokens, pairs, random }: PairDraw,
): void {
  const { headDim: dim, rope } = rows;
  const { startToken, endToken } = range;
  const queryCount = queries.length / dim;
  let total = 0;
  for (let q = 0; q < queryCount; q++) {
    for (let at = q * tokens + startToken, end = q * tokens + endToken; at < end; at++) total += weights[at]!;
  }
  if (!(total > 0)) return;
  const step = total / pairs;
  const unit = step / dim / (endToken - startToken);
  let next = random.uniform() * step;
  let summed = 0;
  const position = new Int32Array(1);
  for (let q = 0; q < queryCount; q++) {
    for (let t = startToken, at = q * tokens + startToken; t < endToken; t++, at++) {
      summed += weights[at]!;
      while (summed > next) {
        next += step;
        const turned = queries.slice(q * dim, (q + 1) * dim);
        position[0] = t;
        // A turn back divides YaRN's magnitude out; the score multiplies query and key by it, once each.
        if (rope !== null) undoRope(turned, position, rope, { heads: 1, headDim: dim });
        for (let i = 0; i < dim; i++) {
          const scaled = unit * turned[i]!;
          for (let j = 0; j <= i; j++) metric[i * dim + j]! += scaled * turned[j]!;
        }
      }
    }
  }
  for (let i = 0; i < dim; i++) for (let j = 0; j < i; j++) metric[j * dim + i] = metric[i * dim + j]!;
}

function addGram(metric: Float64Array, factor: Float64Array, dim: number, weight: number): void {
  for (let i = 0; i < dim; i++) {
    for (let j = 0; j < dim; j++) {
      let sum = 0;
      for (let k = 0, end = Math.min(i, j); k <= end; k++) sum += factor[i * dim + k]! * factor[j * dim + k]!;
      metric[i * dim + j]! += weight * sum;
    }
  }
}
