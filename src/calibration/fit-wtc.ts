// Moments, held-out rows and, where known, sensitivities → what a wtc profile holds: what token ids tell, weighted bases,
// and what these are coded with. Does not know: where rows come from, files. Source: evidence.md section 2.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { layerWidth, streamWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { SCALE_UNITS, scaleIndices } from '../codec/wtc/classes.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { TokenMeans } from '../profile/profile.ts';
import type { RowSource } from './collect.ts';
import type { FittedStream, WtcCoding } from './fit-coding.ts';
import { fitCoding } from './fit-coding.ts';
import type { HeldOutRows } from './held-out.ts';
import { jointRanks } from './joint-ranks.ts';
import { fitLayerGroups } from './layer-groups.ts';
import type { Moments } from './moments.ts';
import type { HeadMetrics, Sensitivity } from './sensitivity-file.ts';
import type { EmbeddingSource, OpenTokenMeans } from './token-means.ts';
import { openTokenMeans } from './token-means.ts';
import { checkExamples, knownTokens } from './token-steps.ts';
import type { TokenMoments } from './token-regression.ts';
import { fitTokenRegression } from './token-regression.ts';
import { fitWeightedBasis } from './weighted-basis.ts';

/** Features of token ids (docs/levers.md has what others bring). */
const TOKEN_FEATURES = 512;

/**
 * So much of a component's variance counts as left at least: one that ids tell almost wholly would come after all that is
 * coded, and what is expected of it would be lost, in all tokens of an id alike. Ten components of SmolLM2 have less.
 */
const LEAST_LEFT = 0.2;

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
  /** Moments of what token ids tell, and the embeddings they were measured with: both or neither. */
  readonly tokenMoments?: TokenMoments | null | undefined;
  readonly embeddings?: EmbeddingSource | undefined;
  /** Adjacent layers that one basis joins at most; default: all. */
  readonly layersPerBasis?: number | undefined;
}

export interface WtcFit extends WtcCoding {
  readonly basisMs: number;
  readonly planMs: number;
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
  const { sensitivity } = options;
  const startedMs = performance.now();
  // Bases of a large model take many minutes: what cannot be fitted after them is refused before.
  if (sensitivity?.importance && options.exponent !== 0) {
    const width = Math.min(streamWidth(options.model.geometry, 'key'), streamWidth(options.model.geometry, 'value'));
    checkExamples(knownTokens(sensitivity.importance).length, Math.min(options.rank, width), true);
  }
  const metrics = sensitivity === undefined ? null : normalised(sensitivity.metrics);
  const found = {
    key: await fitStream('key', moments.key, metrics?.key ?? null, options),
    value: await fitStream('value', moments.value, metrics?.value ?? null, options),
  };
  const energies = found.value.totalEnergy / Math.max(found.key.totalEnergy, Number.MIN_VALUE);
  const valueOffset = metrics === null && energies > 0 ? Math.round((SCALE_UNITS / 2) * Math.log2(energies)) : 0;
  const ranks = jointRanks(found.key.scales, found.value.scales, valueOffset, 2 * options.rank);
  const fitted = { key: firstComponents(found.key, ranks.key), value: firstComponents(found.value, ranks.value) };
  const { tokenMeans, rest } = await withoutExpected(moments, fitted, options);
  const basisMs = performance.now() - startedMs;
  const means = await openMeans(tokenMeans, options);
  try {
    const coding = await fitCoding(held, rest, { ...options, means, tokenMeans, valueOffset });
    return { ...coding, basisMs, planMs: performance.now() - startedMs - basisMs };
  } finally {
    means?.close();
  }
}

/** What token ids tell of coefficients, and the streams with only the rest to code: components by what is left of them. */
async function withoutExpected(
  moments: Readonly<Record<StreamKind, Moments>>,
  fitted: Readonly<Record<StreamKind, FittedStream>>,
  options: WtcFitOptions,
): Promise<{ readonly tokenMeans: TokenMeans | null; readonly rest: Readonly<Record<StreamKind, FittedStream>> }> {
  const { tokenMoments, embeddings } = options;
  if (embeddings === undefined || tokenMoments === undefined || tokenMoments === null) {
    return { tokenMeans: null, rest: fitted };
  }
  const regression = await fitTokenRegression(tokenMoments, moments, fitted, { ...options, dims: TOKEN_FEATURES });
  const { dims, features, offsets } = regression;
  const key = byWhatIsLeft(fitted.key, regression.expected.key, dims);
  const value = byWhatIsLeft(fitted.value, regression.expected.value, dims);
  return {
    tokenMeans: {
      dims,
      width: features.length / dims / 2,
      features: denseMatrix(features, dims, features.length / dims),
      offsets,
      expected: {
        key: denseMatrix(key.expected, key.stream.scales.length, dims),
        value: denseMatrix(value.expected, value.stream.scales.length, dims),
      },
    },
    rest: { key: key.stream, value: value.stream },
  };
}

function byWhatIsLeft(
  stream: FittedStream,
  expected: Float32Array,
  dims: number,
): { readonly stream: FittedStream; readonly expected: Float32Array } {
  const rank = stream.scales.length;
  const left = stream.deviations.map((deviation, k) => {
    let told = 0;
    for (let d = k * dims; d < (k + 1) * dims; d++) told += expected[d]! ** 2;
    return Math.sqrt(Math.max(deviation ** 2 - told, LEAST_LEFT * deviation ** 2));
  });
  const order = Array.from(left, (_, k) => k).toSorted((a, b) => left[b]! - left[a]! || a - b);
  const arranged = (rows: Float32Array): Float32Array => {
    const length = rows.length / rank;
    const out = new Float32Array(rows.length);
    for (const [to, from] of order.entries()) out.set(rows.subarray(from * length, (from + 1) * length), to * length);
    return out;
  };
  const synthesis = arranged(stream.synthesis);
  const deviations = Float32Array.from(order, (k) => left[k]!);
  return {
    stream: {
      ...stream,
      synthesis,
      analysis: stream.metric === null ? synthesis : arranged(stream.analysis),
      deviations,
      scales: scaleIndices(deviations),
    },
    expected: arranged(expected),
  };
}

async function openMeans(means: TokenMeans | null, options: WtcFitOptions): Promise<OpenTokenMeans | null> {
  const { embeddings, backend } = options;
  return means === null || embeddings === undefined ? null : openTokenMeans(means, embeddings, backend);
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
