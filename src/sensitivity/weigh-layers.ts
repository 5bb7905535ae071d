// Weighs the metrics of all layers by what errors of their rows do to an exact model's output: documents → losses of each
// layer (kept, so that an interrupted run goes on) → metrics that compare between layers and streams.
// Does not know how metrics were measured.

import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { writeFailed } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { hashTokens } from '../calibration/sample.ts';
import type { HeadMetrics, Sensitivity, TokenImportance } from '../calibration/sensitivity-file.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import type { ReadDocument } from './attention-costs.ts';
import { stepsOf } from './attention-costs.ts';
import type { LayerLosses } from './layer-scales.ts';
import { BITS, layerScales, measureLayerLosses } from './layer-scales.ts';
import { loadLosses, saveLosses } from './saved-costs.ts';

/** Documents, tokens that are predicted after each, half of them copied, and tokens of a prefix at most. */
export const LAYER_LOSSES = { documents: 3, tokens: 128, prefixTokens: 1024 } as const;

/** What token steps are searched around (calibration/fit-coding.ts). */
export const STEP_EXPONENT = 0.3;

/** Tokens between a copied passage and the ends of the prefix. */
export const COPY_MARGIN = 8;

/** A document, and what the step is multiplied by at each token after the sinks: f64[prefix tokens − sinks]. */
export interface WeighedDocument extends ReadDocument {
  readonly tokenSteps: Readonly<Record<StreamKind, Float64Array>>;
}

export interface WeighOptions extends RunOptions {
  /** Weights of f32 or f16: where activations are rounded to 8 bits, that hides what single layers do. Stays open. */
  readonly exactModel: LlamaModel;
  readonly sinks: number;
  /** Where losses are kept; created when missing. */
  readonly workDirectory: string;
}

/** Metrics of a layer and stream times one number each. Event: phase `layers` (runs). Throws what `measureLayerLosses` does. */
export async function weighLayers(
  metrics: Readonly<Record<StreamKind, HeadMetrics>>,
  documents: readonly WeighedDocument[],
  { exactModel, sinks, workDirectory, signal, onEvent }: WeighOptions,
): Promise<Record<StreamKind, HeadMetrics>> {
  const { layers } = exactModel.identity.geometry;
  await mkdir(workDirectory, { recursive: true }).catch((error: unknown) => {
    throw writeFailed(workDirectory, error);
  });
  const runs = 2 * layers;
  const losses: LayerLosses[] = [];
  for (const [index, document] of documents.entries()) {
    const onRun = (done: number): void => {
      const total = documents.length * runs;
      onEvent?.({ type: 'progress', phase: 'layers', done: index * runs + done, total, unit: 'runs' });
    };
    const key = lossesKey(metrics, document, sinks);
    let measured = await loadLosses(workDirectory, index, key, layers);
    if (measured === null) {
      onRun(0);
      measured = await measureLayerLosses(exactModel, document, metrics, {
        sinks,
        tokenSteps: document.tokenSteps,
        onRun,
        signal,
      });
      await saveLosses(workDirectory, index, key, measured);
    }
    losses.push(measured);
  }
  const scales = layerScales(losses);
  return { key: scaleLayers(metrics.key, scales.key), value: scaleLayers(metrics.value, scales.value) };
}

/** Each layer's blocks times its scale. */
export function scaleLayers(metrics: HeadMetrics, scales: ArrayLike<number>): HeadMetrics {
  const perLayer = metrics.blocks.length / scales.length;
  return { ...metrics, blocks: metrics.blocks.map((value, i) => value * scales[Math.floor(i / perLayer)]!) };
}

/**
 * Weighs the layers of a sensitivity of `model` that was measured elsewhere, on its own documents. Throws KVTC_OPTION_INVALID where it
 * holds none, or no text after their prefixes; KVTC_MODEL_MISMATCH; what `weighLayers` throws.
 */
export async function weighSensitivity(
  sensitivity: Sensitivity,
  model: LlamaModel,
  options: WeighOptions,
): Promise<Sensitivity> {
  const { importance } = sensitivity;
  const after = importance === null ? 0 : importance.documentTokens - importance.prefixTokens;
  const half = LAYER_LOSSES.tokens / 2;
  if (importance === null || after < half || importance.prefixTokens < half + 2 * COPY_MARGIN + options.sinks) {
    const message = `the sensitivity file has ${after} tokens after its documents' prefixes; weighing layers wants ${half}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { gotTokens: after, expectedTokens: half });
  }
  checkCopy(options.exactModel, model);
  const documents = spreadOver(importance.documents).map((index) => documentOf(importance, index, options.sinks));
  const metrics = await weighLayers(sensitivity.metrics, documents, options);
  return { ...sensitivity, metrics, settings: { ...sensitivity.settings, layerLosses: LAYER_LOSSES } };
}

/** Texts come group by group in a sample: indices of the documents that are weighed on, spread over them. */
export function spreadOver(documents: number): number[] {
  const count = Math.min(LAYER_LOSSES.documents, documents);
  return Array.from({ length: count }, (_, i) => Math.floor((i * documents) / count));
}

/** Names and hashes differ between copies; what a measurement depends on may not. Throws KVTC_MODEL_MISMATCH. */
export function checkCopy(copy: LlamaModel, model: LlamaModel): void {
  const facts = ({ identity, vocabSize }: LlamaModel): string =>
    JSON.stringify([identity.architecture, identity.geometry, identity.rope, vocabSize]);
  const [got, expected] = [facts(copy), facts(model)];
  if (got === expected) return;
  const message = `${copy.path} is no copy of ${model.path}: ${got}, expected ${expected}`;
  throw new KvtcError('KVTC_MODEL_MISMATCH', message, { got, expected });
}

/** The end of a document's prefix, with its own continuation and the copy of a passage. */
function documentOf(importance: TokenImportance, index: number, sinks: number): WeighedDocument {
  const { documentTokens, prefixTokens } = importance;
  const start = index * documentTokens + Math.max(0, prefixTokens - LAYER_LOSSES.prefixTokens);
  const end = index * documentTokens + prefixTokens;
  const half = LAYER_LOSSES.tokens / 2;
  const prefix = importance.tokens.slice(start, end);
  const from = COPY_MARGIN + seededRandom(index).below(prefix.length - half - 2 * COPY_MARGIN);
  const continuation = new Int32Array(LAYER_LOSSES.tokens);
  continuation.set(importance.tokens.subarray(end, end + half));
  continuation.set(prefix.subarray(from, from + half), half);
  const steps = (stream: StreamKind): Float64Array =>
    stepsOf(importance[stream].subarray(start + sinks, end), STEP_EXPONENT);
  return { prefix, continuation, tokenSteps: { key: steps('key'), value: steps('value') } };
}

function lossesKey(
  metrics: Readonly<Record<StreamKind, HeadMetrics>>,
  { prefix, continuation, tokenSteps }: WeighedDocument,
  sinks: number,
): string {
  const hash = createHash('sha256').update(JSON.stringify({ sinks, bits: BITS }));
  hash.update(hashTokens(prefix)).update(hashTokens(continuation));
  for (const stream of STREAMS) hash.update(metrics[stream].blocks).update(tokenSteps[stream]);
  return hash.digest('hex');
}
