// What a basis is coded with, from rows that it was not fitted to: coding tables, token predictor, measured steps.
// Does not know: how a basis is fitted, where rows come from, files. Source: evidence.md section 2.

import { createHash } from 'node:crypto';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { SCALE_UNITS } from '../codec/wtc/classes.ts';
import { trainTables } from '../codec/wtc/train.ts';
import type { Backend, MatrixSource } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { HeadMetric, StepPoint, TokenMeans, TokenPredictor } from '../profile/profile.ts';
import type { WtcStream } from '../profile/write-wtc.ts';
import type { RowSource } from './collect.ts';
import type { HeldOutRows } from './held-out.ts';
import { halvesOf, pickRows, projectRows, recencyOf } from './held-out.ts';
import { measureSteps } from './measure-steps.ts';
import type { Sensitivity, TokenImportance } from './sensitivity-file.ts';
import type { OpenTokenMeans, SequenceMeans } from './token-means.ts';
import { PREDICTOR_COMPONENTS, fitTokenPredictor, overGeometricMean, recencies } from './token-steps.ts';

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

/** All that a profile holds beside identity and provenance. */
export interface WtcCoding {
  readonly streams: Readonly<Record<StreamKind, WtcStream>>;
  readonly steps: readonly StepPoint[];
  readonly predictor: TokenPredictor | null;
  readonly tokenMeans: TokenMeans | null;
  /** See CalibrationResult. */
  readonly predicted: Readonly<Record<StreamKind, number>> | null;
}

/** One stream after its basis is fitted. */
export interface FittedStream {
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

export interface CodingFitOptions extends RunOptions {
  readonly backend: Backend;
  readonly rows: RowSource;
  readonly sinks?: number | undefined;
  readonly sensitivity?: Sensitivity | undefined;
  readonly exponent?: number | undefined;
  /** Taken out of coefficients before they are coded; both null where token ids tell nothing. */
  readonly means: OpenTokenMeans | null;
  readonly tokenMeans: TokenMeans | null;
  /** Step index of values less that of keys. */
  readonly valueOffset: number;
}

/** Fits all of it. Throws KVTC_CALIBRATION_TEXT_SHORT, KVTC_ABORTED. */
export async function fitCoding(
  held: HeldOutRows,
  fitted: Readonly<Record<StreamKind, FittedStream>>,
  options: CodingFitOptions,
): Promise<WtcCoding> {
  const { backend, sensitivity, means, tokenMeans, valueOffset, signal, onEvent } = options;
  const importance = sensitivity?.importance ?? null;
  const exponent = importance === null ? 0 : (options.exponent ?? DEFAULT_EXPONENT);
  const fit = importance === null || exponent === 0 ? null : await fitPredictor(importance, fitted, options);
  const coefficients: Partial<Record<StreamKind, Float32Array>> = {};
  const predicting: Partial<Record<StreamKind, Float32Array>> = {};
  const streams: Partial<Record<StreamKind, WtcStream>> = {};
  const { training, measuring } = halvesOf(held);
  const sequences: SequenceMeans[] = [];
  if (means !== null) for (const { tokens } of held.sources) sequences.push(await means.of(tokens));
  for (const [index, stream] of STREAMS.entries()) {
    throwIfAborted(signal);
    const { mean, analysis, synthesis, metric, scales } = fitted[stream];
    const rank = scales.length;
    const width = mean.length;
    const projected = await projectRows(held[stream], held.rowCount, mean, analysis, rank, backend);
    predicting[stream] = pickRows(projected.coefficients, rank, measuring);
    await takeOutExpected(sequences, stream, held.sources, projected.coefficients, rank);
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
    coefficients: coefficients as Record<StreamKind, Float32Array>,
    predicting: {
      tokens: measuring.length,
      ...(predicting as Record<StreamKind, Float32Array>),
      recency: pickRows(recencyOf(held.documentRows), 1, measuring),
    },
    valueOffset,
    predictor: fit?.predictor ?? null,
    exponent: fit === null ? 0 : exponent,
    signal,
  });
  const kept = (stream: StreamKind): number =>
    Math.max(RANK_STEP, fit?.predictor.components ?? 0, ...steps.map((point) => point[stream].rank));
  const streamsKept = { key: leading(key, kept('key')), value: leading(value, kept('value')) };
  return {
    streams: streamsKept,
    steps,
    predictor: fit?.predictor ?? null,
    tokenMeans: tokenMeans && withinRank(tokenMeans, streamsKept),
    predicted: fit?.r2 ?? null,
  };
}

/** A stream without the components that no step codes outside the finer window; what is left is a multiple of RANK_STEP. */
function leading(stream: WtcStream, components: number): WtcStream {
  const rank = Math.min(stream.scales.length, RANK_STEP * Math.ceil(components / RANK_STEP));
  const { scales, synthesis } = stream;
  return { ...stream, scales: scales.slice(0, rank), synthesis: { ...synthesis, rows: rank } };
}

/** From coefficients f32[rows, rank] of documents' chosen tokens, in place. */
async function takeOutExpected(
  sequences: readonly SequenceMeans[],
  stream: StreamKind,
  sources: HeldOutRows['sources'],
  coefficients: Float32Array,
  rank: number,
): Promise<void> {
  let row = 0;
  for (const [d, sequence] of sequences.entries()) {
    const { chosen } = sources[d]!;
    const own = coefficients.subarray(row * rank, (row + chosen.length) * rank);
    await sequence.add(stream, chosen, own, { rank, components: rank }, -1);
    row += chosen.length;
  }
}

/** What is expected of the components that are kept. */
function withinRank(means: TokenMeans, streams: Readonly<Record<StreamKind, WtcStream>>): TokenMeans {
  const kept = (stream: StreamKind): MatrixSource => {
    const { rows } = means.expected[stream];
    return { ...means.expected[stream], rows: Math.min(rows, streams[stream].scales.length) };
  };
  return { ...means, expected: { key: kept('key'), value: kept('value') } };
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
  { backend, rows, sinks = 0, signal, onEvent }: CodingFitOptions,
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
    const range = { startToken: tokens.length - found.rowCount, endToken: tokens.length };
    for (const stream of STREAMS) {
      const { mean, analysis } = fitted[stream];
      const leading = analysis.subarray(0, rank * mean.length);
      const { coefficients } = await projectRows(found[stream], found.rowCount, mean, leading, rank, backend);
      parts[stream].push(coefficients);
      targets[stream].push(overGeometricMean(importance[stream].subarray(end - found.rowCount, end)));
    }
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
