// Runs documents through the engine with its queries watched, and sums what errors in each head's rows cost the
// attention outputs (attention.ts): metrics up to a factor per head, and importances of tokens.
// Does not know: how outputs' energies cost the model, files.

import { KvtcError, invariant } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { HeadMetrics } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import type { Gguf } from '../engines/llama/gguf.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import type { StateView } from '../engines/llama/state.ts';
import { parseState } from '../engines/llama/state.ts';
import type { TensorTap } from '../engines/llama/tap.ts';
import type { Backend } from '../linalg/backend.ts';
import type { HeadRows } from './attention.ts';
import { costMetrics, tokenCosts } from './attention.ts';
import { headColumns, layerRows } from './layer-rows.ts';
import { outputGram } from './output-gram.ts';

/** Residual stream plus attention output, as llama.cpp names it in all graphs with separate norms. */
const RESIDUAL_NAME = 'ffn_inp-';

/** Share of the mean token's importance that one nothing reads is taken to have. */
const LEAST_IMPORTANCE = 1e-6;

/** A prefix, and what reads its cache. */
export interface ReadDocument {
  readonly prefix: Int32Array;
  /** Natural text after the prefix, then a copy of a passage of it. */
  readonly continuation: Int32Array;
}

/** What one document showed. */
export interface DocumentCosts extends ResidualSums {
  /** In units of energy of the layer's attention output. */
  readonly metrics: Readonly<Record<StreamKind, HeadMetrics>>;
  /** f32[prefix tokens]: mean over heads of a token's cost over the mean token's; NaN outside the range. */
  readonly importance: Readonly<Record<StreamKind, Float32Array>>;
}

/** By layer: sums of squares of the residual stream after its attention, and rows summed. */
export interface ResidualSums {
  readonly energies: Float64Array;
  readonly counts: Float64Array;
}

export interface CostsOptions {
  readonly backend: Backend;
  readonly sinks: number;
  readonly window: number;
  /** Of the steps that tokens are taken to be coded with, see `stepWeights`. */
  readonly stepExponent: number;
  readonly seed: number;
  /** (query, token) pairs per query head and document that estimate the key metric. */
  readonly pairs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Holds two contexts of the model: close it. */
export interface CostMeter {
  /** Costs of the document that stands at `index` of the sample, which chooses its random pairs. */
  measure(document: ReadDocument, index: number): Promise<DocumentCosts>;
  close(): void;
}

/** Factors of the output Gram matrices of all layers, as `attentionCosts` takes them. */
async function outputFactors(gguf: Gguf, layers: number, dim: number, backend: Backend): Promise<Float64Array[]> {
  const factors: Float64Array[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const blocks = await outputGram(gguf, layer, dim, backend);
    factors.push(factorMetrics({ heads: blocks.length / (dim * dim), headDim: dim, blocks }).lower);
  }
  return factors;
}

/**
 * Opens a meter for documents of up to `contextTokens`. Any weights will do: queries, keys and values of a quantised model
 * are as good, and its output projection is dequantised. Throws KVTC_MODEL_UNSUPPORTED when heads of keys and values differ
 * in size or a projection is missing; `measure` does when the graph has no rotated queries or residuals by the usual
 * names. Both throw KVTC_ENGINE_FAILED, KVTC_ABORTED.
 */
export async function openCostMeter(
  model: LlamaModel,
  contextTokens: number,
  options: CostsOptions,
): Promise<CostMeter> {
  const { layers, keyHeadDim, valueHeadDim: dim } = model.identity.geometry;
  if (keyHeadDim !== dim) {
    const message = `key heads of ${keyHeadDim} and value heads of ${dim}: forward sensitivities want them alike`;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { keyHeadDim, valueHeadDim: dim });
  }
  const factors = await outputFactors(await readGguf(model.path), layers, dim, options.backend);
  const plain = await model.createContext({ contextTokens, microBatchTokens: Math.min(512, contextTokens) });
  const seen: Seen = {
    queries: new Map(),
    energies: new Float64Array(layers),
    counts: new Float64Array(layers),
  };
  try {
    const watched = await model.createContext({ contextTokens, tap: queryTap(seen) });
    return {
      measure: (document, index) => measureDocument(model, { plain, watched, seen, factors }, document, index, options),
      close: () => {
        watched.close();
        plain.close();
      },
    };
  } catch (error) {
    plain.close();
    throw error;
  }
}

/** What the tap saw in the last decode. */
interface Seen extends ResidualSums {
  readonly queries: Map<number, Float32Array>;
}

interface MeterParts {
  readonly plain: LlamaContext;
  readonly watched: LlamaContext;
  readonly seen: Seen;
  /** Per layer, of all query heads. */
  readonly factors: readonly Float64Array[];
}

async function measureDocument(
  model: LlamaModel,
  { plain, watched, seen, factors }: MeterParts,
  document: ReadDocument,
  index: number,
  { backend, sinks, window, stepExponent, seed, pairs, signal }: CostsOptions,
): Promise<DocumentCosts> {
  const { geometry } = model.identity;
  const dim = headDim(geometry, 'value');
  const heads = geometry.layers * geometry.kvHeads;
  const random = seededRandom(seed + index);
  plain.clear();
  await plain.decode(document.prefix, { logits: 'none', signal });
  watched.clear();
  watched.setState(plain.getState());
  seen.queries.clear();
  seen.energies.fill(0);
  seen.counts.fill(0);
  await watched.decode(document.continuation, { logits: 'none', signal });
  const view = parseState(watched.getState());
  const range = { startToken: sinks, endToken: document.prefix.length - window };
  const scores: Record<StreamKind, Float32Array> = {
    key: new Float32Array(document.prefix.length).fill(NaN),
    value: new Float32Array(document.prefix.length).fill(NaN),
  };
  const inRange = (stream: StreamKind): Float32Array => scores[stream].subarray(range.startToken, range.endToken);
  for (const stream of STREAMS) inRange(stream).fill(0);
  const watchedHeads = { view, queries: seen.queries, queryCount: document.continuation.length, factors };
  for (const { rows } of headsOf(model, watchedHeads)) {
    throwIfAborted(signal);
    const costs = await tokenCosts(rows, range, backend);
    for (const stream of STREAMS) addRelative(inRange(stream), costs[stream], heads);
  }
  const weights = {
    key: stepWeights(inRange('key'), stepExponent),
    value: stepWeights(inRange('value'), stepExponent),
  };
  const blocks = { key: new Float32Array(heads * dim * dim), value: new Float32Array(heads * dim * dim) };
  for (const { rows, head } of headsOf(model, watchedHeads)) {
    throwIfAborted(signal);
    const metrics = await costMetrics(rows, range, weights, { pairs, random }, backend);
    for (const stream of STREAMS) blocks[stream].set(metrics[stream], head * dim * dim);
  }
  if (seen.counts.every((count) => count === 0)) {
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', `the engine's graph has no tensors ${RESIDUAL_NAME}N`);
  }
  const metrics = (stream: StreamKind): HeadMetrics => ({ heads, headDim: dim, blocks: blocks[stream] });
  return {
    metrics: { key: metrics('key'), value: metrics('value') },
    importance: scores,
    energies: seen.energies.slice(),
    counts: seen.counts.slice(),
  };
}

interface WatchedHeads {
  readonly view: StateView;
  /** By layer, of the last `queryCount` tokens. */
  readonly queries: ReadonlyMap<number, Float32Array>;
  readonly queryCount: number;
  readonly factors: readonly Float64Array[];
}

/** All KV heads by layer. `head` counts through the layers. */
function* headsOf(
  { identity: { geometry, rope } }: LlamaModel,
  { view, queries, queryCount, factors }: WatchedHeads,
): Generator<{ readonly rows: HeadRows; readonly head: number }> {
  const { layers, kvHeads } = geometry;
  const dim = headDim(geometry, 'value');
  for (let layer = 0; layer < layers; layer++) {
    const keys = layerRows(view, 'key', layer);
    const values = layerRows(view, 'value', layer);
    const asked = layerQueries(queries, layer, queryCount, kvHeads * dim);
    const queryHeads = asked.length / queryCount / dim;
    for (let h = 0; h < kvHeads; h++) {
      const readers = Array.from({ length: queryHeads / kvHeads }, (_, g) => {
        const head = (h * queryHeads) / kvHeads + g;
        const outputFactor = factors[layer]!.subarray(head * dim * dim, (head + 1) * dim * dim);
        return { queries: headColumns(asked, queryHeads * dim, head, dim), outputFactor };
      });
      const rows = {
        headDim: dim,
        keys: headColumns(keys, kvHeads * dim, h, dim),
        values: headColumns(values, kvHeads * dim, h, dim),
        readers,
        rope,
      };
      yield { rows, head: layer * kvHeads + h };
    }
  }
}

/**
 * f64[tokens]: m = (importance / geometric mean)^−exponent, what a token's step is taken to be multiplied by; 1 where the
 * importance was not measured (NaN).
 */
export function stepsOf(importance: Float32Array, exponent: number): Float64Array {
  const logs = Float64Array.from(importance, (value) => Math.log(value < LEAST_IMPORTANCE ? LEAST_IMPORTANCE : value));
  const known = logs.filter((log) => !Number.isNaN(log));
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  return logs.map((log) => (Number.isNaN(log) ? 1 : Math.exp(-exponent * (log - mean))));
}

/**
 * m²: errors cost so many times what those of a token of the mean step do. Else the few tokens that matter most, whose
 * steps are finest, would say which directions count in all others.
 */
function stepWeights(importance: Float32Array, exponent: number): Float64Array {
  return stepsOf(importance, exponent).map((step) => step * step);
}

/** Mean metrics over documents, added one by one, and the mean squared length of the residual stream. */
export class CostSums {
  private documents = 0;
  private readonly metrics: Partial<Record<StreamKind, { readonly first: HeadMetrics; readonly sums: Float64Array }>> =
    {};
  private residuals: ResidualSums | null = null;

  add({ metrics, energies, counts }: DocumentCosts): void {
    this.documents++;
    for (const stream of STREAMS) {
      const first = metrics[stream];
      const { sums } = (this.metrics[stream] ??= { first, sums: new Float64Array(first.blocks.length) });
      for (let i = 0; i < sums.length; i++) sums[i]! += first.blocks[i]!;
    }
    this.residuals ??= { energies: new Float64Array(energies.length), counts: new Float64Array(counts.length) };
    for (let layer = 0; layer < energies.length; layer++) {
      this.residuals.energies[layer]! += energies[layer]!;
      this.residuals.counts[layer]! += counts[layer]!;
    }
  }

  /** Throws nothing; at least one document was added. */
  mean(): AttentionCosts {
    const mean = (stream: StreamKind): HeadMetrics => {
      const found = this.metrics[stream];
      invariant(found !== undefined, 'a document was added');
      return { ...found.first, blocks: Float32Array.from(found.sums, (sum) => sum / this.documents) };
    };
    invariant(this.residuals !== null, 'a document was added');
    return { metrics: { key: mean('key'), value: mean('value') }, residualEnergy: meanResiduals(this.residuals) };
  }
}

export interface AttentionCosts {
  readonly metrics: Readonly<Record<StreamKind, HeadMetrics>>;
  /** f64[layers]: mean squared length of the residual stream after each layer's attention. The next norm divides by it. */
  readonly residualEnergy: Float64Array;
}

/** Keeps every layer's rotated queries of the last decode, in order of tokens, and sums the residual stream's energy. */
function queryTap({ queries, energies, counts }: Seen): TensorTap {
  return {
    wants: (name, operation) => (operation === 'ROPE' && name.startsWith('Qcur-')) || name.startsWith(RESIDUAL_NAME),
    take: ({ name, dims, values }) => {
      if (name.startsWith(RESIDUAL_NAME)) {
        const layer = Number(name.slice(RESIDUAL_NAME.length));
        for (const value of values) energies[layer]! += value * value;
        counts[layer]! += values.length / (dims[0] ?? 1);
        return;
      }
      const layer = Number(name.slice('Qcur-'.length));
      const before = queries.get(layer) ?? new Float32Array(0);
      const all = new Float32Array(before.length + values.length);
      all.set(before);
      all.set(values, before.length);
      queries.set(layer, all);
    },
  };
}

/** The engine drops rows without logits in the last layer; a layer not seen is taken as the one before. */
function meanResiduals({ energies, counts }: ResidualSums): Float64Array {
  let last = NaN;
  return energies.map((energy, layer) => (last = counts[layer]! > 0 ? energy / counts[layer]! : last));
}

function layerQueries(
  queries: ReadonlyMap<number, Float32Array>,
  layer: number,
  tokens: number,
  kvWidth: number,
): Float32Array {
  const found = queries.get(layer);
  if (found === undefined || found.length === 0 || found.length % (tokens * kvWidth) !== 0) {
    const message = `the engine's graph shows ${found?.length ?? 0} values as rotated queries of layer ${layer}; expected a multiple of ${tokens} × ${kvWidth}`;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { layer });
  }
  return found;
}

/** Adds costs over their mean, as one of `heads` equal shares. A head that nothing reads adds an even share. */
function addRelative(scores: Float32Array, costs: Float64Array, heads: number): void {
  const total = costs.reduce((a, b) => a + b, 0);
  for (let t = 0; t < costs.length; t++) {
    scores[t]! += (total > 0 ? (costs[t]! * costs.length) / total : 1) / heads;
  }
}
