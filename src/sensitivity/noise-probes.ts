// How much an energy of errors costs the model's output: noise of the shape that coding errors will have is put into a
// layer (or one head) of a restored cache, and the KL of a continuation is measured, place by place.
// Does not know: how metrics come about, files. Source: evidence.md's forward-only road.

import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { MetricFactors } from '../calibration/weighted-basis.ts';
import type { LlamaContext } from '../engines/llama/session.ts';
import { parseState } from '../engines/llama/state.ts';
import { createReferenceRows, recordExact, scoreAgainst } from '../evaluation/metrics.ts';
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
  /** Of metrics in units of energy. */
  readonly factors: Readonly<Record<StreamKind, MetricFactors>>;
  /** What is disturbed at once: all KV heads of a layer, or one. */
  readonly place: 'layer' | 'head';
  /** Noise per weighted dimension, as a share of the head's own standard deviation there (default 0.5). */
  readonly noiseShare?: number | undefined;
  /** Tokens left exact at the start. */
  readonly sinks: number;
  readonly seed: number;
}

/** KL and the weighted energy that caused it, place by place: f64[layers] or f64[layers · kvHeads]. */
export interface Probes {
  /** Nats, summed over the positions of each part of the continuation. */
  readonly natural: Readonly<Record<StreamKind, Float64Array>>;
  readonly copy: Readonly<Record<StreamKind, Float64Array>>;
  /** Σ over tokens and heads of eᵀ·M·e. */
  readonly energy: Readonly<Record<StreamKind, Float64Array>>;
}

/**
 * Probes every place of both streams on one document: 1 + 2 · places continuations. Progress counts them (`probes`).
 * Throws KVTC_STATE_UNSUPPORTED unless the cache is f16, KVTC_ABORTED, KVTC_ENGINE_FAILED.
 */
export async function probeNoise(document: ProbeDocument, options: ProbeOptions): Promise<Probes> {
  const { model, context, vocabulary, sinks, seed, place, noiseShare = 0.5, signal, onEvent } = options;
  const { geometry, rope } = model;
  const { prefix, continuation, naturalTokens } = document;
  const headsAtOnce = place === 'layer' ? geometry.kvHeads : 1;
  const places = (geometry.layers * geometry.kvHeads) / headsAtOnce;
  const empty = (): Record<StreamKind, Float64Array> => ({
    key: new Float64Array(places),
    value: new Float64Array(places),
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
  let done = 0;
  for (const stream of STREAMS) {
    const dim = headDim(geometry, stream);
    const width = geometry.kvHeads * dim;
    const turn = stream === 'key' ? rope : null;
    for (let at = 0; at < places; at++) {
      throwIfAborted(signal);
      onEvent?.({ type: 'progress', phase: 'probes', done: done++, total: 2 * places, unit: 'probes' });
      const layer = Math.floor((at * headsAtOnce) / geometry.kvHeads);
      const rows = layerRows(view, stream, layer);
      const changed = rows.slice();
      for (let head = at * headsAtOnce; head < (at + 1) * headsAtOnce; head++) {
        const column = (head % geometry.kvHeads) * dim;
        const own = headColumns(rows, width, head % geometry.kvHeads, dim);
        if (turn !== null) undoRope(own, view.positions, turn, { heads: 1, headDim: dim });
        const { noise, energy } = headNoise(own, options.factors[stream], head, sinks, noiseShare, seed + head);
        if (turn !== null) applyRope(noise, view.positions, turn, { heads: 1, headDim: dim });
        for (let t = 0; t < view.tokenCount; t++) {
          for (let d = 0; d < dim; d++) changed[t * width + column + d]! += noise[t * dim + d]!;
        }
        probes.energy[stream][at]! += energy;
      }
      setLayerRows(view, stream, layer, changed);
      context.clear();
      context.setState(state);
      setLayerRows(view, stream, layer, rows);
      const kl = await run(scoreAgainst);
      for (const part of ['natural', 'copy'] as const) probes[part][stream][at] = Math.max(0, kl[part]);
    }
  }
  onEvent?.({ type: 'progress', phase: 'probes', done, total: 2 * places, unit: 'probes' });
  return probes;
}

/** Noise of equal size in all weighted dimensions, f32[tokens, dim], and its weighted energy: Σ ‖Lᵀ·noise‖². */
function headNoise(
  own: Float32Array,
  { headDim: dim, lower, inverse }: MetricFactors,
  head: number,
  sinks: number,
  share: number,
  seed: number,
): { noise: Float32Array; energy: number } {
  const tokens = own.length / dim;
  const block = head * dim * dim;
  const sums = new Float64Array(dim);
  let squares = 0;
  for (let t = sinks; t < tokens; t++) {
    for (let i = 0; i < dim; i++) {
      let y = 0; // (Lᵀ·x)_i
      for (let j = i; j < dim; j++) y += lower[block + j * dim + i]! * own[t * dim + j]!;
      sums[i]! += y;
      squares += y * y;
    }
  }
  const count = tokens - sinks;
  const meanSquare = sums.reduce((sum, value) => sum + (value / count) ** 2, 0);
  const size = share * Math.sqrt(Math.max(0, squares / count - meanSquare) / dim);
  const random = seededRandom(seed);
  const noise = new Float32Array(own.length);
  const drawn = new Float64Array(dim);
  let energy = 0;
  for (let t = sinks; t < tokens; t++) {
    for (let i = 0; i < dim; i++) {
      drawn[i] = size * random.normal();
      energy += drawn[i]! * drawn[i]!;
    }
    for (let i = 0; i < dim; i++) {
      let x = 0; // (L⁻ᵀ·e)_i
      for (let j = i; j < dim; j++) x += inverse[block + j * dim + i]! * drawn[j]!;
      noise[t * dim + i] = x;
    }
  }
  return { noise, energy };
}
