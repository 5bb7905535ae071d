// What the metrics' units are worth by layer and stream: one layer's keys or values are coded, the model goes on from that
// cache, and the loss is compared with what the metric says of the error. Everything between a layer's attention and the
// logits, which first-order costs of the attention's output do not see, is in it.
// Does not know: how metrics were measured, files.

import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { encodeF16 } from '../base/half.ts';
import type { HeadMetrics } from '../calibration/sensitivity-file.ts';
import type { MetricFactors } from '../calibration/weighted-basis.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import type { StateView } from '../engines/llama/state.ts';
import { parseState, scatterRows } from '../engines/llama/state.ts';
import type { ReferenceRows } from '../evaluation/metrics.ts';
import { createReferenceRows, recordExact, scoreAgainst } from '../evaluation/metrics.ts';
import { applyRope, undoRope } from '../rope/rotate.ts';
import type { ReadDocument } from './attention-costs.ts';
import type { HeadCoding } from './head-coding.ts';
import { codeHeadRows, fitHeadCoding, stepForBits } from './head-coding.ts';
import { headColumns, layerRows } from './layer-rows.ts';

/** Bits a component of a head coded by itself: few, so that most components are dropped, as they are at high ratios. */
export const BITS = 0.5;

/** One document's losses, and the metric's costs of the same errors: [layers] of each stream. */
export interface LayerLosses {
  readonly klSums: Readonly<Record<StreamKind, readonly number[]>>;
  readonly costs: Readonly<Record<StreamKind, readonly number[]>>;
}

export interface LossOptions {
  readonly sinks: number;
  /** f64[prefix tokens − sinks] of each stream: what the step is multiplied by at each token. */
  readonly tokenSteps: Readonly<Record<StreamKind, Float64Array>>;
  /** Called after each of the 2 · layers runs. */
  readonly onRun: (done: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * `model` computes in f32 or f16: where activations are rounded to 8 bits, any change of a cache costs up to 0.002 nats a
 * token. Runs the continuation once from the exact cache and once for every layer and stream. Memory: the continuation's
 * distributions and logits, 8 · tokens · vocabulary bytes, and the state twice. Throws KVTC_ENGINE_FAILED, KVTC_ABORTED.
 */
export async function measureLayerLosses(
  model: LlamaModel,
  { prefix, continuation }: ReadDocument,
  metrics: Readonly<Record<StreamKind, HeadMetrics>>,
  options: LossOptions,
): Promise<LayerLosses> {
  const { signal } = options;
  const contextTokens = prefix.length + continuation.length;
  const context = await model.createContext({ contextTokens, microBatchTokens: Math.min(512, contextTokens) });
  try {
    await context.decode(prefix, { logits: 'none', signal });
    const state = context.getState();
    const reference = createReferenceRows(continuation.length, model.vocabSize);
    await scoreContinuation(context, continuation, reference, recordExact, signal);
    const coder = openLayerCoder(model, state, metrics, options);
    const losses = {
      klSums: { key: [] as number[], value: [] as number[] },
      costs: { key: [] as number[], value: [] as number[] },
    };
    for (let layer = 0; layer < model.identity.geometry.layers; layer++) {
      for (const [index, stream] of STREAMS.entries()) {
        throwIfAborted(signal);
        const coded = coder(layer, stream);
        context.clear();
        context.setState(coded.state);
        losses.costs[stream].push(coded.cost);
        losses.klSums[stream].push(await scoreContinuation(context, continuation, reference, scoreAgainst, signal));
        options.onRun(2 * layer + index + 1);
      }
    }
    return losses;
  } finally {
    context.close();
  }
}

async function scoreContinuation(
  context: LlamaContext,
  continuation: Int32Array,
  reference: ReferenceRows,
  by: typeof scoreAgainst,
  signal: AbortSignal | undefined,
): Promise<number> {
  await context.decode(continuation, { logits: 'all', signal });
  const logits = context.logits(continuation.length);
  const targets = new Int32Array(continuation.length).fill(-1);
  return by(reference, { logits, firstRow: 0, skippedRows: 0, targets }).klSum;
}

/** A copy of the state with one layer of one stream coded, and the metric's cost of that. */
type LayerCoder = (layer: number, stream: StreamKind) => { readonly state: Uint8Array; readonly cost: number };

function openLayerCoder(
  { identity: { geometry, rope } }: LlamaModel,
  state: Uint8Array<ArrayBuffer>,
  metrics: Readonly<Record<StreamKind, HeadMetrics>>,
  { sinks, tokenSteps }: LossOptions,
): LayerCoder {
  const { layers, kvHeads } = geometry;
  const view = parseState(state);
  const range = { startToken: sinks, endToken: view.tokenCount };
  const positions = Int32Array.from({ length: view.tokenCount - sinks }, (_, t) => sinks + t);
  const rowsOf = (layer: number, stream: StreamKind, dim: number): Float32Array => {
    const rows = layerRows(view, stream, layer).subarray(sinks * kvHeads * dim);
    if (stream === 'key' && rope !== null) undoRope(rows, positions, rope, { heads: kvHeads, headDim: dim });
    return rows;
  };
  const factors = { key: factorMetrics(metrics.key), value: factorMetrics(metrics.value) };
  const codings = { key: [] as HeadCoding[], value: [] as HeadCoding[] };
  for (const stream of STREAMS) {
    const dim = headDim(geometry, stream);
    for (let layer = 0; layer < layers; layer++) {
      const rows = rowsOf(layer, stream, dim);
      for (let h = 0; h < kvHeads; h++) {
        const { lower, inverse } = factorsOf(factors[stream], layer * kvHeads + h);
        codings[stream].push(fitHeadCoding(headColumns(rows, kvHeads * dim, h, dim), dim, lower, inverse));
      }
    }
  }
  const step = stepForBits([...codings.key, ...codings.value], BITS);
  return (layer, stream) => {
    const dim = headDim(geometry, stream);
    const width = kvHeads * dim;
    const rows = rowsOf(layer, stream, dim);
    let cost = 0;
    for (let h = 0; h < kvHeads; h++) {
      const own = headColumns(rows, width, h, dim);
      cost += codeHeadRows(own, codings[stream][layer * kvHeads + h]!, step, tokenSteps[stream]);
      for (let t = 0; t < positions.length; t++) rows.set(own.subarray(t * dim, (t + 1) * dim), t * width + h * dim);
    }
    if (stream === 'key' && rope !== null) applyRope(rows, positions, rope, { heads: kvHeads, headDim: dim });
    const halves = new Uint16Array(rows.length);
    encodeF16(rows, halves);
    const copy: StateView = parseState(state.slice());
    scatterRows(copy, stream, { startLayer: layer, endLayer: layer + 1 }, range, new Uint8Array(halves.buffer));
    return { state: copy.bytes, cost };
  };
}

function factorsOf(
  { lower, inverse, headDim: dim }: MetricFactors,
  head: number,
): Pick<MetricFactors, 'lower' | 'inverse'> {
  const part = (values: Float64Array): Float64Array => values.subarray(head * dim * dim, (head + 1) * dim * dim);
  return { lower: part(lower), inverse: part(inverse) };
}

/** By layer: losses over costs, summed over documents, over the geometric mean of all layers and both streams. */
export function layerScales(measured: readonly LayerLosses[]): Readonly<Record<StreamKind, readonly number[]>> {
  const sum = (of: 'klSums' | 'costs', stream: StreamKind, layer: number): number =>
    measured.reduce((total, losses) => total + losses[of][stream][layer]!, 0);
  const logs = (stream: StreamKind): number[] =>
    (measured[0]?.costs[stream] ?? []).map((_, layer) => {
      const [kl, cost] = [sum('klSums', stream, layer), sum('costs', stream, layer)];
      return kl > 0 && cost > 0 ? Math.log(kl / cost) : NaN;
    });
  const all = { key: logs('key'), value: logs('value') };
  const known = [...all.key, ...all.value].filter((log) => !Number.isNaN(log));
  const mean = known.reduce((a, b) => a + b, 0) / Math.max(1, known.length);
  const scales = (stream: StreamKind): number[] =>
    all[stream].map((log) => (Number.isNaN(log) ? 1 : Math.exp(log - mean)));
  return { key: scales('key'), value: scales('value') };
}
