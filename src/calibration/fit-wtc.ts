// Moments, held-out rows and, where known, sensitivities → what a wtc profile holds: weighted bases, scales, tables,
// token predictor, measured steps. Does not know: where rows come from, files. Source: evidence.md section 2.

import { createHash } from 'node:crypto';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { STREAMS, layerWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { SCALE_UNITS, scaleIndices } from '../codec/wtc/classes.ts';
import { trainTables } from '../codec/wtc/train.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { HeadMetric, StepPoint, TokenPredictor } from '../profile/profile.ts';
import type { WtcStream } from '../profile/write-wtc.ts';
import type { RowSource } from './collect.ts';
import type { HeldOutRows } from './held-out.ts';
import { halvesOf, pickRows, projectRows, recencyOf } from './held-out.ts';
import { jointRanks } from './joint-ranks.ts';
import { fitLayerGroups } from './layer-groups.ts';
import { measureSteps } from './measure-steps.ts';
import type { Moments } from './moments.ts';
import type { HeadMetrics, Sensitivity, TokenImportance } from './sensitivity-file.ts';
import { PREDICTOR_COMPONENTS, fitTokenPredictor, recencies } from './token-steps.ts';
import { fitWeightedBasis } from './weighted-basis.ts';

/** More exponent predicts better and copies worse; 0.3 is best for both (evidence.md 2). */
const DEFAULT_EXPONENT = 0.3;

/** Tables are trained at steps half an octave apart. */
const TRAINING_STRIDE = SCALE_UNITS / 2;

/** No ratio worth having needs a step finer than this many octaves below the first component's deviation. */
const TRAINING_REACH = 12;

/**
 * The engine reads so many documents for the predictor, so many tokens of each at most: eight times what its weights need,
 * where a file measured on a GPU may have a hundred times.
 */
const PREDICTOR_READS = { tokens: 36_864, perDocument: 3072 } as const;

/** Group of the documents that the predictor is fitted to, as no path is called: the engine's time for them is within `planMs`. */
export const IMPORTANCE_GROUP = '\0importance';

/** Components under this share of the first one's deviation are left out of predictions. */
const LEAST_DEVIATION = 1e-4;

/** Finest trained step: so many octaves below the last component's deviation, which then takes about 4 bits. */
const TRAINING_OCTAVES = 4;

/** A stream gets at most this share more than half of all components. */
const RANK_REACH = 4 / 3;

export interface WtcFitOptions extends RunOptions {
  /** Components kept of keys and of values, on average: those that deviate most in steps, of whichever stream. */
  readonly rank: number;
  readonly seed: number;
  readonly backend: Backend;
  readonly rows: RowSource;
  readonly sinks?: number | undefined;
  readonly sensitivity?: Sensitivity | undefined;
  readonly exponent?: number | undefined;
  readonly model: { readonly geometry: CacheGeometry };
  /** Adjacent layers that one basis joins at most; default: all. */
  readonly layersPerBasis?: number | undefined;
}

export interface WtcFit {
  readonly streams: Readonly<Record<StreamKind, WtcStream>>;
  readonly steps: readonly StepPoint[];
  readonly predictor: TokenPredictor | null;
  /** See CalibrationResult. */
  readonly predicted: Readonly<Record<StreamKind, number>> | null;
  readonly basisMs: number;
  readonly planMs: number;
}

/** One stream after its basis is fitted. */
interface FittedStream {
  readonly mean: Float32Array;
  /** f32[rank, p] */
  readonly analysis: Float32Array;
  readonly synthesis: Float32Array;
  /** Null where the analysis is the synthesis. */
  readonly metric: HeadMetric | null;
  /** f32[rank] */
  readonly deviations: Float32Array;
  readonly scales: Int16Array;
  readonly totalEnergy: number;
}

/**
 * Fits all parts. Without sensitivities values' steps stand to keys' as the streams' deviations, and all tokens are coded
 * alike. Throws KVTC_CALIBRATION_TEXT_SHORT, KVTC_SENSITIVITY_MALFORMED, KVTC_ABORTED.
 */
export async function fitWtc(
  moments: Readonly<Record<StreamKind, Moments>>,
  held: HeldOutRows,
  options: WtcFitOptions,
): Promise<WtcFit> {
  const { backend, sensitivity, signal, onEvent } = options;
  const startedMs = performance.now();
  const metrics = sensitivity === undefined ? null : normalised(sensitivity.metrics);
  const found = {
    key: await fitStream('key', moments.key, metrics?.key ?? null, options),
    value: await fitStream('value', moments.value, metrics?.value ?? null, options),
  };
  const energies = found.value.totalEnergy / Math.max(found.key.totalEnergy, Number.MIN_VALUE);
  const valueOffset = metrics === null && energies > 0 ? Math.round((SCALE_UNITS / 2) * Math.log2(energies)) : 0;
  const ranks = jointRanks(found.key.scales, found.value.scales, valueOffset, 2 * options.rank);
  const fitted = { key: firstComponents(found.key, ranks.key), value: firstComponents(found.value, ranks.value) };
  const basisMs = performance.now() - startedMs;
  const importance = sensitivity?.importance ?? null;
  const exponent = importance === null ? 0 : (options.exponent ?? DEFAULT_EXPONENT);
  const fit = importance === null || exponent === 0 ? null : await fitPredictor(importance, fitted, options);
  const coefficients: Partial<Record<StreamKind, Float32Array>> = {};
  const streams: Partial<Record<StreamKind, WtcStream>> = {};
  const { training, measuring } = halvesOf(held);
  for (const [index, stream] of STREAMS.entries()) {
    throwIfAborted(signal);
    const { mean, analysis, synthesis, metric, scales } = fitted[stream];
    const rank = scales.length;
    const width = mean.length;
    const projected = await projectRows(held[stream], held.rowCount, mean, analysis, rank, backend);
    coefficients[stream] = pickRows(projected.coefficients, rank, measuring);
    const rows = { coefficients: pickRows(projected.coefficients, rank, training), tokenCount: training.length, rank };
    streams[stream] = {
      mean,
      scales,
      family: trainTables(rows, scales, trainingSteps(scales)),
      metric,
      synthesis: denseMatrix(synthesis, rank, width),
    };
    onEvent?.({ type: 'progress', phase: 'plan', done: index + 1, total: 2, unit: 'streams' });
  }
  const { key, value } = streams as Record<StreamKind, WtcStream>;
  const steps = measureSteps({
    tables: { key, value },
    widths: { key: key.mean.length, value: value.mean.length },
    coefficients: {
      tokens: measuring.length,
      ...(coefficients as Record<StreamKind, Float32Array>),
      recency: pickRows(recencyOf(held.documentRows), 1, measuring),
    },
    valueOffset,
    predictor: fit?.predictor ?? null,
    exponent: fit === null ? 0 : exponent,
    signal,
  });
  const kept = (stream: StreamKind): number =>
    Math.max(RANK_STEP, fit?.predictor.components ?? 0, ...steps.map((point) => point[stream].rank));
  return {
    streams: { key: leading(key, kept('key')), value: leading(value, kept('value')) },
    steps,
    predictor: fit?.predictor ?? null,
    predicted: fit?.r2 ?? null,
    basisMs,
    planMs: performance.now() - startedMs - basisMs,
  };
}

/** A stream without the components that no step codes outside the finer window; what is left is a multiple of RANK_STEP. */
function leading(stream: WtcStream, components: number): WtcStream {
  const rank = Math.min(stream.scales.length, RANK_STEP * Math.ceil(components / RANK_STEP));
  const { scales, synthesis } = stream;
  return { ...stream, scales: scales.slice(0, rank), synthesis: { ...synthesis, rows: rank } };
}

function firstComponents(stream: FittedStream, rank: number): FittedStream {
  const cut = (rows: Float32Array): Float32Array => rows.subarray(0, rank * stream.mean.length);
  const synthesis = cut(stream.synthesis);
  return {
    ...stream,
    synthesis,
    analysis: stream.metric === null ? synthesis : cut(stream.analysis),
    deviations: stream.deviations.subarray(0, rank),
    scales: stream.scales.slice(0, rank),
  };
}

async function fitStream(
  stream: StreamKind,
  moments: Moments,
  metrics: HeadMetrics | null,
  options: WtcFitOptions,
): Promise<FittedStream> {
  const { backend, seed, signal, onEvent, model } = options;
  const width = moments.frame.width;
  const run = { backend, seed, signal, onEvent, rank: Math.min(width, Math.ceil(RANK_REACH * options.rank)) };
  const { layers } = model.geometry;
  const layersPerBasis = Math.min(layers, options.layersPerBasis ?? layers);
  const found =
    metrics === null
      ? await fitLayerGroups(moments, layersPerBasis * layerWidth(model.geometry, stream), run).then(
          ({ basis, ...plain }) => ({
            ...plain,
            analysis: basis,
            synthesis: basis,
            metric: null,
          }),
        )
      : await fitWeightedBasis(moments, metrics, { ...run, layers, groups: Math.ceil(layers / layersPerBasis) });
  const rank = found.rank - (found.rank % RANK_STEP);
  if (rank === 0) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `the ${stream} rows span ${found.rank} directions; at least ${RANK_STEP} are needed`,
      { stream, rank: found.rank },
    );
  }
  const deviations = Float32Array.from(found.variances.subarray(0, rank), Math.sqrt);
  const { mean, analysis, synthesis, metric, totalEnergy } = found;
  return { mean, analysis, synthesis, metric, deviations, scales: scaleIndices(deviations), totalEnergy };
}

/**
 * Metrics of both streams over one number, so that matrices hold values of moderate size: only proportions matter, and
 * those between keys and values are kept. Throws KVTC_SENSITIVITY_MALFORMED when a stream's are all zero.
 */
function normalised(metrics: Sensitivity['metrics']): Sensitivity['metrics'] {
  const size = (stream: StreamKind): number => {
    const { heads, headDim, blocks } = metrics[stream];
    let sum = 0;
    for (let d = 0; d < heads * headDim; d++) sum += blocks[d * headDim + (d % headDim)]!;
    if (!(sum > 0)) throw new KvtcError('KVTC_SENSITIVITY_MALFORMED', `all ${stream} metrics are zero`, { stream });
    return sum / (heads * headDim);
  };
  const scale = 1 / Math.sqrt(size('key') * size('value'));
  const scaled = (stream: StreamKind): HeadMetrics => ({
    ...metrics[stream],
    blocks: metrics[stream].blocks.map((value) => value * scale),
  });
  return { key: scaled('key'), value: scaled('value') };
}

/** From where only the first components are coded to where the last takes about 4 bits. */
function trainingSteps(scales: Int16Array): number[] {
  const first = scales[0]!;
  const last = Math.max(scales.at(-1)! - TRAINING_OCTAVES * SCALE_UNITS, first - TRAINING_REACH * SCALE_UNITS);
  const steps: number[] = [];
  for (let stepIndex = first; stepIndex >= last; stepIndex -= TRAINING_STRIDE) steps.push(stepIndex);
  return steps;
}

/** Runs the documents whose tokens' importances were measured, and learns to predict these. */
async function fitPredictor(
  importance: TokenImportance,
  fitted: Readonly<Record<StreamKind, FittedStream>>,
  { backend, rows, sinks = 0, signal, onEvent }: WtcFitOptions,
): Promise<Awaited<ReturnType<typeof fitTokenPredictor>>> {
  const rank = Math.min(PREDICTOR_COMPONENTS, ...STREAMS.map((stream) => movingComponents(fitted[stream].deviations)));
  const { documents, documentTokens, prefixTokens } = importance;
  const recency: Float32Array[] = [];
  const parts: Record<StreamKind, Float32Array[]> = { key: [], value: [] };
  const targets: Record<StreamKind, Float32Array[]> = { key: [], value: [] };
  const perDocument = Math.min(documentTokens, PREDICTOR_READS.perDocument);
  const read = Math.min(documents, Math.ceil(PREDICTOR_READS.tokens / perDocument));
  for (let i = 0; i < read; i++) {
    throwIfAborted(signal);
    const d = Math.floor((i * documents) / read); // evenly over the file
    const first = d * documentTokens;
    let end = first + perDocument;
    while (end > first && Number.isNaN(importance.key[end - 1]) && Number.isNaN(importance.value[end - 1])) end--;
    if (end - first <= sinks) continue;
    const tokens = importance.tokens.slice(first, end);
    const sha256 = createHash('sha256').update(new Uint8Array(tokens.buffer)).digest('hex');
    const found = await rows(
      { group: IMPORTANCE_GROUP, source: `importance ${d}`, tokens, sha256 },
      { signal, onEvent },
    );
    for (const stream of STREAMS) {
      const { mean, analysis } = fitted[stream];
      const leading = analysis.subarray(0, rank * mean.length);
      const { coefficients } = await projectRows(found[stream], found.rowCount, mean, leading, rank, backend);
      parts[stream].push(coefficients);
      targets[stream].push(importance[stream].subarray(end - found.rowCount, end));
    }
    const range = { startToken: tokens.length - found.rowCount, endToken: tokens.length };
    recency.push(recencies(range, prefixTokens));
    onEvent?.({ type: 'progress', phase: 'importance', done: i + 1, total: read, unit: 'documents' });
  }
  const tokens = targets.key.reduce((sum, part) => sum + part.length, 0);
  const deviations = {
    key: fitted.key.deviations.subarray(0, rank),
    value: fitted.value.deviations.subarray(0, rank),
  };
  return fitTokenPredictor(
    { tokens, key: joined(parts.key), value: joined(parts.value), recency: joined(recency) },
    { key: joined(targets.key), value: joined(targets.value) },
    deviations,
    backend,
  );
}

/** Components that vary at all: others tell nothing, and their coefficients divided by nearly 0 tell nonsense. */
function movingComponents(deviations: Float32Array): number {
  const still = deviations.findIndex((deviation) => deviation < LEAST_DEVIATION * deviations[0]!);
  return still < 0 ? deviations.length : still;
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
