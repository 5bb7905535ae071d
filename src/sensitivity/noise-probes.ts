// How much an energy of errors costs the model's output: noise of the shape that coding errors will have is put into one
// layer of a restored cache, and the KL of a continuation is measured, layer by layer. Noise is kept so small that the
// cost still grows with its energy, and large enough to stand clear of the engine's rounding.
// Does not know: how metrics come about, files. Source: evidence.md's forward-only road.

import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { MetricFactors } from '../calibration/weighted-basis.ts';
import type { LlamaContext } from '../engines/llama/session.ts';
import { parseState } from '../engines/llama/state.ts';
import { createReferenceRows, recordExact, scoreAgainst } from '../evaluation/metrics.ts';
import { symmetricEigen } from '../linalg/symmetric-eigen.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import { applyRope, undoRope } from '../rope/rotate.ts';
import { headColumns, layerRows, setLayerRows } from './layer-rows.ts';

export interface ProbeDocument {
  readonly prefix: Int32Array;
  /** Natural text after the prefix, then a copy of a passage of it. */
  readonly continuation: Int32Array;
  /** Tokens of the continuation that are natural. */
  readonly naturalTokens: number;
}

export interface ProbeOptions extends RunOptions {
  readonly model: ModelIdentity;
  readonly vocabulary: number;
  /** Room for prefix and continuation, batches of the whole continuation. Its sequence is overwritten. */
  readonly context: LlamaContext;
  /** Of metrics in units of energy of the layers' attention outputs. */
  readonly factors: Readonly<Record<StreamKind, MetricFactors>>;
  /** f64[layers], up to a factor: what an energy in each layer is thought to cost, so that noises cost about the same. */
  readonly expected: Float64Array;
  /**
   * Tokens left exact at the start and at the end of the prefix, as the costs behind the factors leave them out: nearby
   * tokens are read far more than the mean one.
   */
  readonly sinks: number;
  readonly window: number;
  readonly seed: number;
}

/** KL and the weighted energy that caused it: f64[layers]. */
export interface Probes {
  /** Nats, summed over the positions of each part of the continuation. */
  readonly natural: Readonly<Record<StreamKind, Float64Array>>;
  readonly copy: Readonly<Record<StreamKind, Float64Array>>;
  /** Σ over tokens and heads of eᵀ·M·e. */
  readonly energy: Readonly<Record<StreamKind, Float64Array>>;
}

/** KL per position that a layer's noise aims at: a hundred times the rounding of f32 weights, a third of paper 16x. */
const TARGET_KL = 2e-3;
/** Energy of the first, trial noise, and of any noise at most, as a share of the rows' own. */
const TRIAL_SHARE = 0.03;
const LARGEST_SHARE = 0.5;

/**
 * Probes every layer of both streams on one document: 2 + 2 · layers continuations. Progress counts them (`probes`).
 * Throws KVTC_STATE_UNSUPPORTED unless the cache is f16, KVTC_ABORTED, KVTC_ENGINE_FAILED.
 */
export async function probeNoise(document: ProbeDocument, options: ProbeOptions): Promise<Probes> {
  const { model, context, vocabulary, expected, seed, signal, onEvent } = options;
  const { layers } = model.geometry;
  const { prefix, continuation, naturalTokens } = document;
  const empty = (): Record<StreamKind, Float64Array> => ({
    key: new Float64Array(layers),
    value: new Float64Array(layers),
  });
  const probes = { natural: empty(), copy: empty(), energy: empty() };
  context.clear();
  await context.decode(prefix, { logits: 'none', signal });
  const state = context.getState();
  const view = parseState(state);
  const reference = createReferenceRows(continuation.length, vocabulary);
  const run = async (score: typeof scoreAgainst): Promise<{ natural: number; copy: number }> => {
    await context.decode(continuation, { logits: 'all', signal });
    const logits = context.logits(continuation.length);
    const sumOf = (start: number, end: number): number =>
      score(reference, {
        logits: logits.subarray(start * vocabulary, end * vocabulary),
        firstRow: start,
        skippedRows: 0,
        targets: new Int32Array(end - start).fill(-1),
      }).klSum;
    return { natural: sumOf(0, naturalTokens), copy: sumOf(naturalTokens, continuation.length) };
  };
  await run(recordExact);
  const probe = async (
    stream: StreamKind,
    layer: number,
    energyOf: (own: number) => number,
  ): Promise<{ natural: number; copy: number; energy: number }> => {
    throwIfAborted(signal);
    const rows = layerRows(view, stream, layer);
    const noisy = noisyLayer(rows, view.positions, stream, layer, energyOf, options, seed + layer);
    setLayerRows(view, stream, layer, noisy.rows);
    context.clear();
    context.setState(state);
    setLayerRows(view, stream, layer, rows);
    return { ...(await run(scoreAgainst)), energy: noisy.energy };
  };
  const middle = layers >> 1;
  const trial = await probe('value', middle, (own) => TRIAL_SHARE * own);
  const trialKl = Math.max(trial.natural + trial.copy, Number.MIN_VALUE);
  const energyUnit = (trial.energy * expected[middle]! * TARGET_KL * continuation.length) / trialKl;
  let done = 0;
  for (const stream of STREAMS) {
    for (let layer = 0; layer < layers; layer++) {
      onEvent?.({ type: 'progress', phase: 'probes', done: done++, total: 2 * layers, unit: 'probes' });
      const wanted = energyUnit / expected[layer]!;
      const found = await probe(stream, layer, (own) => Math.min(wanted, LARGEST_SHARE * own));
      probes.natural[stream][layer] = Math.max(0, found.natural);
      probes.copy[stream][layer] = Math.max(0, found.copy);
      probes.energy[stream][layer] = found.energy;
    }
  }
  onEvent?.({ type: 'progress', phase: 'probes', done, total: 2 * layers, unit: 'probes' });
  return probes;
}

/**
 * A layer's rows with noise as coding leaves it: the same in all weighted directions, but nowhere more than the rows
 * themselves vary (reverse water-filling). `energyOf` chooses the noise's energy from the rows' own.
 */
function noisyLayer(
  rows: Float32Array,
  positions: Int32Array,
  stream: StreamKind,
  layer: number,
  energyOf: (own: number) => number,
  { model, factors, sinks, window }: ProbeOptions,
  seed: number,
): { rows: Float32Array; energy: number } {
  const { geometry, rope } = model;
  const dim = headDim(geometry, stream);
  const width = geometry.kvHeads * dim;
  const turn = stream === 'key' ? rope : null;
  const tokens = positions.length;
  const range = { startToken: sinks, endToken: tokens - window };
  const spectra = Array.from({ length: geometry.kvHeads }, (_, h) => {
    const own = headColumns(rows, width, h, dim);
    if (turn !== null) undoRope(own, positions, turn, { heads: 1, headDim: dim });
    return weightedSpectrum(own, factors[stream], layer * geometry.kvHeads + h, range);
  });
  const variances = spectra.flatMap(({ values }) => [...values]);
  const count = range.endToken - range.startToken;
  const level = waterLevel(variances, energyOf(count * variances.reduce((a, b) => a + b, 0)) / count);
  const random = seededRandom(seed);
  const changed = rows.slice();
  let energy = 0;
  for (const [h, { values, vectors }] of spectra.entries()) {
    const block = (layer * geometry.kvHeads + h) * dim * dim;
    const { inverse } = factors[stream];
    const sizes = Float64Array.from(values, (value) => Math.sqrt(Math.min(value, level)));
    const noise = new Float32Array(tokens * dim);
    const weighted = new Float64Array(dim);
    for (let t = range.startToken; t < range.endToken; t++) {
      weighted.fill(0);
      for (let k = 0; k < dim; k++) {
        const drawn = sizes[k]! * random.normal();
        energy += drawn * drawn;
        for (let i = 0; i < dim; i++) weighted[i]! += drawn * vectors[k * dim + i]!;
      }
      for (let i = 0; i < dim; i++) {
        let x = 0; // (L⁻ᵀ·e)_i
        for (let j = i; j < dim; j++) x += inverse[block + j * dim + i]! * weighted[j]!;
        noise[t * dim + i] = x;
      }
    }
    if (turn !== null) applyRope(noise, positions, turn, { heads: 1, headDim: dim });
    for (let t = 0; t < tokens; t++) {
      for (let d = 0; d < dim; d++) changed[t * width + h * dim + d]! += noise[t * dim + d]!;
    }
  }
  return { rows: changed, energy };
}

/** Eigenpairs of the covariance of Lᵀ·x over a range of tokens; vectors as rows. */
function weightedSpectrum(
  own: Float32Array,
  { headDim: dim, lower }: MetricFactors,
  head: number,
  { startToken, endToken }: TokenRange,
): { values: Float64Array; vectors: Float64Array } {
  const count = endToken - startToken;
  const block = head * dim * dim;
  const sums = new Float64Array(dim);
  const squares = new Float64Array(dim * dim);
  const y = new Float64Array(dim);
  for (let t = startToken; t < endToken; t++) {
    for (let i = 0; i < dim; i++) {
      let sum = 0;
      for (let j = i; j < dim; j++) sum += lower[block + j * dim + i]! * own[t * dim + j]!;
      y[i] = sum;
      sums[i]! += sum;
    }
    for (let i = 0; i < dim; i++) for (let j = 0; j <= i; j++) squares[i * dim + j]! += y[i]! * y[j]!;
  }
  for (let i = 0; i < dim; i++) {
    for (let j = 0; j <= i; j++) {
      const value = squares[i * dim + j]! / count - (sums[i]! / count) * (sums[j]! / count);
      squares[i * dim + j] = value;
      squares[j * dim + i] = value;
    }
  }
  const { values, vectors } = symmetricEigen(squares, dim);
  return { values: values.map((value) => Math.max(0, value)), vectors };
}

/** The level at which Σ min(variance, level) is `total`; the largest variance where they do not reach it. */
export function waterLevel(variances: readonly number[], total: number): number {
  const rising = variances.toSorted((a, b) => a - b);
  let below = 0;
  for (const [i, variance] of rising.entries()) {
    if (below + variance * (rising.length - i) >= total) return (total - below) / (rising.length - i);
    below += variance;
  }
  return rising.at(-1) ?? 0;
}
