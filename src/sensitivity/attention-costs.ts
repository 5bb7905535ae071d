// Runs documents through the engine with its queries watched, and sums what errors in each head's rows cost the
// attention outputs (attention.ts): metrics up to a factor per head, and importances of tokens.
// Does not know: how outputs' energies cost the model, files.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { HeadMetrics } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import type { Gguf } from '../engines/llama/gguf.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import { parseState } from '../engines/llama/state.ts';
import type { TensorTap } from '../engines/llama/tap.ts';
import type { Backend } from '../linalg/backend.ts';
import type { HeadRows } from './attention.ts';
import { headCosts } from './attention.ts';
import { headColumns, layerRows } from './layer-rows.ts';
import { outputGram } from './output-gram.ts';
import type { ProbeDocument } from './noise-probes.ts';

/** Residual stream plus attention output, as llama.cpp names it in all graphs with separate norms. */
const RESIDUAL_NAME = 'ffn_inp-';

export interface AttentionCosts {
  /** Mean over documents, in units of energy of the layer's attention output. */
  readonly metrics: Readonly<Record<StreamKind, HeadMetrics>>;
  /** Per document f32[prefix tokens]: mean over heads of a token's cost over the mean token's; NaN outside the range. */
  readonly importance: readonly Readonly<Record<StreamKind, Float32Array>>[];
  /** f64[layers]: mean squared length of the residual stream after each layer's attention. The next norm divides by it. */
  readonly residualEnergy: Float64Array;
}

/** Sums of squares of the residual stream, and rows summed, by layer. */
interface ResidualSums {
  readonly energies: Float64Array;
  readonly counts: Float64Array;
}

export interface CostsOptions {
  readonly backend: Backend;
  readonly sinks: number;
  readonly window: number;
  readonly seed: number;
  /** (query, token) pairs per query head and document that estimate the key metric. */
  readonly pairs: number;
  readonly signal?: AbortSignal | undefined;
  /** Called with each prefix's cache when its document is done; the bytes are the callee's. */
  readonly onDocument?: ((done: number, prefix: Uint8Array) => void) | undefined;
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
 * Costs over documents. The model must run an f32 or f16 copy whose GGUF is `gguf`.
 * Throws KVTC_MODEL_UNSUPPORTED when the graph has no rotated queries by the usual name, KVTC_ENGINE_FAILED.
 */
export async function attentionCosts(
  model: LlamaModel,
  gguf: Gguf,
  documents: readonly ProbeDocument[],
  options: CostsOptions,
): Promise<AttentionCosts> {
  const { geometry, rope } = model.identity;
  const { layers, kvHeads } = geometry;
  const dim = headDim(geometry, 'value');
  const { backend, sinks, window, seed, pairs, signal } = options;
  const factors = await outputFactors(gguf, layers, dim, backend);
  const sums: Record<StreamKind, Float64Array> = {
    key: new Float64Array(layers * kvHeads * dim * dim),
    value: new Float64Array(layers * kvHeads * dim * dim),
  };
  const importance: Record<StreamKind, Float32Array>[] = [];
  const random = seededRandom(seed);
  const plain = await model.createContext({ contextTokens: longest(documents), microBatchTokens: 512 });
  const queries = new Map<number, Float32Array>();
  const residuals = { energies: new Float64Array(layers), counts: new Float64Array(layers) };
  const tap = queryTap(queries, residuals);
  const watched = await model.createContext({ contextTokens: longest(documents), tap });
  try {
    for (const [index, document] of documents.entries()) {
      plain.clear();
      await plain.decode(document.prefix, { logits: 'none', signal });
      watched.clear();
      const prefix = plain.getState();
      watched.setState(prefix);
      queries.clear();
      await watched.decode(document.continuation, { logits: 'none', signal });
      const view = parseState(watched.getState());
      const range = { startToken: sinks, endToken: document.prefix.length - window };
      const scores: Record<StreamKind, Float32Array> = {
        key: new Float32Array(document.prefix.length).fill(NaN),
        value: new Float32Array(document.prefix.length).fill(NaN),
      };
      for (const stream of STREAMS) scores[stream].fill(0, range.startToken, range.endToken);
      for (let layer = 0; layer < layers; layer++) {
        const keys = layerRows(view, 'key', layer);
        const values = layerRows(view, 'value', layer);
        const asked = layerQueries(queries, layer, document.continuation.length, kvHeads * dim);
        const queryHeads = asked.length / document.continuation.length / dim;
        for (let h = 0; h < kvHeads; h++) {
          const rows: HeadRows = {
            headDim: dim,
            keys: headColumns(keys, kvHeads * dim, h, dim),
            values: headColumns(values, kvHeads * dim, h, dim),
            readers: Array.from({ length: queryHeads / kvHeads }, (_, g) => {
              const head = (h * queryHeads) / kvHeads + g;
              return {
                queries: headColumns(asked, queryHeads * dim, head, dim),
                outputFactor: (factors[layer] as Float64Array).subarray(head * dim * dim, (head + 1) * dim * dim),
              };
            }),
            rope,
          };
          const costs = await headCosts(rows, range, pairs, random, backend);
          const at = (layer * kvHeads + h) * dim * dim;
          addInto(sums.key.subarray(at, at + dim * dim), costs.keyMetric, 1 / documents.length);
          addInto(sums.value.subarray(at, at + dim * dim), costs.valueMetric, 1 / documents.length);
          addRelative(scores.key.subarray(range.startToken), costs.keyImportance, layers * kvHeads);
          addRelative(scores.value.subarray(range.startToken), costs.valueImportance, layers * kvHeads);
        }
      }
      importance.push(scores);
      options.onDocument?.(index + 1, prefix);
    }
  } finally {
    watched.close();
    plain.close();
  }
  const metrics = (stream: StreamKind): HeadMetrics => ({
    heads: layers * kvHeads,
    headDim: dim,
    blocks: Float32Array.from(sums[stream]),
  });
  return {
    metrics: { key: metrics('key'), value: metrics('value') },
    importance,
    residualEnergy: meanResiduals(residuals),
  };
}

function longest(documents: readonly ProbeDocument[]): number {
  return documents.reduce((most, { prefix, continuation }) => Math.max(most, prefix.length + continuation.length), 0);
}

/** Keeps every layer's rotated queries of the last decode, in order of tokens, and sums the residual stream's energy. */
function queryTap(queries: Map<number, Float32Array>, residuals: ResidualSums): TensorTap {
  return {
    wants: (name, operation) => (operation === 'ROPE' && name.startsWith('Qcur-')) || name.startsWith(RESIDUAL_NAME),
    take: ({ name, dims, values }) => {
      if (name.startsWith(RESIDUAL_NAME)) {
        const layer = Number(name.slice(RESIDUAL_NAME.length));
        for (const value of values) residuals.energies[layer]! += value * value;
        residuals.counts[layer]! += values.length / (dims[0] ?? 1);
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
  const means = energies.map((energy, layer) => (last = counts[layer]! > 0 ? energy / counts[layer]! : last));
  if (means.every(Number.isFinite)) return means;
  throw new KvtcError('KVTC_MODEL_UNSUPPORTED', `the engine's graph has no tensors ${RESIDUAL_NAME}N`);
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

function addInto(sum: Float64Array, part: Float64Array, weight: number): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += weight * part[i]!;
}

/** Adds costs over their mean, as one of `heads` equal shares. A head that nothing reads adds an even share. */
function addRelative(scores: Float32Array, costs: Float64Array, heads: number): void {
  const total = costs.reduce((a, b) => a + b, 0);
  for (let t = 0; t < costs.length; t++) {
    scores[t]! += (total > 0 ? (costs[t]! * costs.length) / total : 1) / heads;
  }
}
