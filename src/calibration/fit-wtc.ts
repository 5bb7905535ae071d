// Moments, held-out rows and, where known, sensitivities → what a wtc profile holds: what token ids tell, weighted bases,
// and what these are coded with. Does not know: where rows come from, files. Source: evidence.md section 2.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { layerWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { SCALE_UNITS, scaleIndices } from '../codec/wtc/classes.ts';
import type { Backend } from '../linalg/backend.ts';
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
import type { TokenMoments, TokenRegression } from './token-regression.ts';
import { fitTokenRegression } from './token-regression.ts';
import type { ExpectedRows } from './weighted-basis.ts';
import { factorMetrics, fitWeightedBasis } from './weighted-basis.ts';

/** Features of token ids, and components that something is expected of by them (docs/levers.md has what others bring). */
const TOKEN_FEATURES = 256;
const EXPECTED_COMPONENTS = 1024;

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
  const metrics = sensitivity === undefined ? null : normalised(sensitivity.metrics);
  const regression = await regressionOf(moments, metrics, options);
  const found = {
    key: await fitStream('key', moments.key, metrics?.key ?? null, regression, options),
    value: await fitStream('value', moments.value, metrics?.value ?? null, regression, options),
  };
  const energies = found.value.totalEnergy / Math.max(found.key.totalEnergy, Number.MIN_VALUE);
  const valueOffset = metrics === null && energies > 0 ? Math.round((SCALE_UNITS / 2) * Math.log2(energies)) : 0;
  const ranks = jointRanks(found.key.scales, found.value.scales, valueOffset, 2 * options.rank);
  const fitted = { key: firstComponents(found.key, ranks.key), value: firstComponents(found.value, ranks.value) };
  const tokenMeans = tokenMeansOf(regression, fitted);
  const basisMs = performance.now() - startedMs;
  const means = await openMeans(tokenMeans, options);
  try {
    const coding = await fitCoding(held, fitted, { ...options, means, tokenMeans, valueOffset });
    return { ...coding, basisMs, planMs: performance.now() - startedMs - basisMs };
  } finally {
    means?.close();
  }
}

async function regressionOf(
  moments: Readonly<Record<StreamKind, Moments>>,
  metrics: Sensitivity['metrics'] | null,
  options: WtcFitOptions,
): Promise<TokenRegression | null> {
  const { tokenMoments, embeddings } = options;
  if (metrics === null || embeddings === undefined || tokenMoments === undefined || tokenMoments === null) return null;
  const factors = { key: factorMetrics(metrics.key), value: factorMetrics(metrics.value) };
  return fitTokenRegression(tokenMoments, moments, factors, { ...options, dims: TOKEN_FEATURES });
}

function tokenMeansOf(
  regression: TokenRegression | null,
  fitted: Readonly<Record<StreamKind, FittedStream>>,
): TokenMeans | null {
  if (regression === null) return null;
  const { dims, features, offsets } = regression;
  const expected = { key: fitted.key.expected, value: fitted.value.expected };
  const rows = { key: expected.key.length / dims, value: expected.value.length / dims };
  return { dims, width: features.length / dims / 2, features, offsets, rows, expected };
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
  regression: TokenRegression | null,
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
            expected: new Float32Array(0),
          }),
        )
      : await fitWeightedBasis(moments, metrics, {
          ...run,
          layers,
          groups: Math.ceil(layers / layersPerBasis),
          expected: regression === null ? undefined : expectedRows(regression, stream),
        });
  const rank = found.rank - (found.rank % RANK_STEP);
  if (rank === 0) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `the ${stream} rows span ${found.rank} directions; at least ${RANK_STEP} are needed`,
      { stream, rank: found.rank },
    );
  }
  const deviations = Float32Array.from(found.variances.subarray(0, rank), Math.sqrt);
  const { mean, analysis, synthesis, metric, expected, totalEnergy } = found;
  return { mean, analysis, synthesis, metric, expected, deviations, scales: scaleIndices(deviations), totalEnergy };
}

function expectedRows({ weighted, dims }: TokenRegression, stream: StreamKind): ExpectedRows {
  return { weighted: weighted[stream], dims, components: EXPECTED_COMPONENTS };
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
