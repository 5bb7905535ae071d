// Measures a model's sensitivity by forward passes alone: texts → engine → attention costs → the file that
// kvtc_collect writes by gradients. Does not know how sensitivities are used.

import { createHash } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { PRODUCER } from '../base/version.ts';
import type { TextGroup } from '../calibration/sample.ts';
import { hashTokens, sampleDocuments } from '../calibration/sample.ts';
import type { HeadMetrics, Sensitivity, TokenImportance } from '../calibration/sensitivity-file.ts';
import { writeSensitivity } from '../calibration/sensitivity-file.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import type { Backend } from '../linalg/backend.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { AttentionCosts, CostMeter, DocumentCosts, ReadDocument } from './attention-costs.ts';
import { CostSums, openCostMeter, stepsOf } from './attention-costs.ts';
import { loadCosts, saveCosts } from './saved-costs.ts';
import type { WeighedDocument } from './weigh-layers.ts';
import {
  COPY_MARGIN,
  LAYER_LOSSES,
  STEP_EXPONENT,
  checkCopy,
  scaleLayers,
  spreadOver,
  weighLayers,
} from './weigh-layers.ts';

/** docs/results.md has what fewer or more documents change. */
const SENSITIVITY_DEFAULTS = {
  documents: 12,
  prefixTokens: 1024,
  naturalTokens: 192,
  copyTokens: 192,
  pairs: 1024,
  sinks: 4,
  /** None: the newest tokens matter most, and are coded finer, not kept. */
  window: 0,
  stepExponent: STEP_EXPONENT,
  seed: 21,
} as const;

/**
 * Keys cost this many times what first order says, where it is not measured: errors of scores act through an exponential.
 * Without it SmolLM2 has CR 77, 62 instead of 88, 77.
 */
const KEY_WEIGHT = 4;

export interface MeasureOptions extends RunOptions {
  /** Stays open. Weights of any type. */
  readonly model: LlamaModel;
  /**
   * The same model with weights of f32 or f16; stays open. Layers are weighed by what their errors do to its output, else
   * by the residual stream's energy alone.
   */
  readonly exactModel?: LlamaModel | undefined;
  readonly backend: Backend;
  /** Identity of the published model that `model` is a copy of; default: that of `model` itself. */
  readonly identity?: ModelIdentity | undefined;
  readonly texts: readonly TextGroup[];
  /** Sensitivity file to write. */
  readonly output: string;
  /** Where finished documents are kept; default `output + '.work'`, which is deleted when the file is written. */
  readonly workDirectory?: string | undefined;
  readonly documents?: number | undefined;
  readonly prefixTokens?: number | undefined;
  readonly seed?: number | undefined;
}

/**
 * Measures and writes a sensitivity file of method `forward`. Takes documents · (prefix + 384) tokens of the engine's time,
 * and more of this process's. An interrupted measurement goes on with the document it was at, and ends in the same bytes.
 * Events: phases `sensitivity` (documents) and, with an exact model, `layers` (runs).
 * Throws KVTC_OPTION_INVALID, KVTC_CALIBRATION_TEXT_SHORT, KVTC_MODEL_UNSUPPORTED, KVTC_MODEL_MISMATCH, KVTC_ABORTED,
 * KVTC_WRITE_FAILED, and what the engine throws.
 */
export async function measureSensitivity(options: MeasureOptions): Promise<Sensitivity> {
  const setting = settingsOf(options);
  const { model, exactModel } = options;
  if (exactModel !== undefined) checkCopy(exactModel, model);
  const documents = sampledDocuments(model, options.texts, setting);
  const { costs, importance } = await measureCosts(documents, setting, options);
  const metrics = await comparableMetrics(documents, costs, importance, setting, options);
  const { architecture, name, fingerprint, geometry } = options.identity ?? model.identity;
  const sensitivity: Sensitivity = {
    method: 'forward',
    producer: PRODUCER,
    model: { architecture, name, fingerprint, geometry },
    settings: { ...setting, layerLosses: options.exactModel === undefined ? null : LAYER_LOSSES },
    metrics,
    importance: importanceOf(documents, importance),
  };
  await writeSensitivity(options.output, sensitivity);
  if (options.workDirectory === undefined) await rm(workDirectoryOf(options), { recursive: true, force: true });
  return sensitivity;
}

function workDirectoryOf({ workDirectory, output }: MeasureOptions): string {
  return workDirectory ?? `${output}.work`;
}

/** Costs of all documents, from the work directory where they were measured before. */
async function measureCosts(
  documents: readonly ReadDocument[],
  setting: Setting,
  options: MeasureOptions,
): Promise<{ readonly costs: AttentionCosts; readonly importance: DocumentCosts['importance'][] }> {
  const { model, backend, signal, onEvent } = options;
  const directory = workDirectoryOf(options);
  const key = measurementKey(documents, setting);
  const longest = setting.prefixTokens + setting.naturalTokens + setting.copyTokens;
  const sums = new CostSums();
  const importance: DocumentCosts['importance'][] = [];
  const report = (done: number): void =>
    onEvent?.({ type: 'progress', phase: 'sensitivity', done, total: documents.length, unit: 'documents' });
  let meter: CostMeter | null = null;
  report(0);
  try {
    for (const [index, document] of documents.entries()) {
      throwIfAborted(signal);
      let costs = await loadCosts(directory, index, key, model.identity);
      if (costs === null) {
        meter ??= await openCostMeter(model, longest, { ...setting, backend, signal });
        costs = await meter.measure(document, index);
        await saveCosts(directory, index, key, model.identity, document.prefix, costs);
      }
      sums.add(costs);
      importance.push(costs.importance);
      report(index + 1);
    }
  } finally {
    meter?.close();
  }
  return { costs: sums.mean(), importance };
}

function measurementKey(documents: readonly ReadDocument[], setting: Setting): string {
  const hash = createHash('sha256').update(JSON.stringify(setting));
  for (const { prefix, continuation } of documents) hash.update(hashTokens(prefix)).update(hashTokens(continuation));
  return hash.digest('hex');
}

type Setting = { readonly [K in keyof typeof SENSITIVITY_DEFAULTS]: number };

function settingsOf(options: MeasureOptions): Setting {
  const setting = {
    ...SENSITIVITY_DEFAULTS,
    documents: options.documents ?? SENSITIVITY_DEFAULTS.documents,
    prefixTokens: options.prefixTokens ?? SENSITIVITY_DEFAULTS.prefixTokens,
    seed: options.seed ?? SENSITIVITY_DEFAULTS.seed,
  };
  for (const [option, least, most] of [
    ['documents', 1, 4096],
    ['prefixTokens', setting.copyTokens + setting.window + setting.sinks + 2 * COPY_MARGIN, 1 << 20],
    ['seed', 0, 2 ** 32 - 1],
  ] as const) {
    const got = setting[option];
    if (Number.isSafeInteger(got) && got >= least && got <= most) continue;
    const message = `${option} is ${got}; expected an integer from ${least} to ${most}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option, got });
  }
  return setting;
}

/** Prefixes with their own continuation and, after it, the copy of a passage. */
function sampledDocuments(model: LlamaModel, texts: readonly TextGroup[], setting: Setting): ReadDocument[] {
  const { documents, prefixTokens, naturalTokens, copyTokens, seed } = setting;
  const documentTokens = prefixTokens + naturalTokens;
  const found = sampleDocuments(texts, {
    // Every group gives whole documents.
    tokens: texts.length * Math.ceil(documents / Math.max(1, texts.length)) * documentTokens,
    documentTokens,
    seed,
    tokenize: (text) => model.tokenize(text, { addSpecial: false }),
  })
    .filter(({ tokens }) => tokens.length === documentTokens)
    .slice(0, documents);
  if (found.length === 0) {
    const message = `the texts give no document of ${documentTokens} tokens`;
    throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', message, { documentTokens });
  }
  const random = seededRandom(seed);
  return found.map(({ tokens }) => {
    const start = COPY_MARGIN + random.below(prefixTokens - copyTokens - 2 * COPY_MARGIN);
    const continuation = new Int32Array(naturalTokens + copyTokens);
    continuation.set(tokens.subarray(prefixTokens));
    continuation.set(tokens.subarray(start, start + copyTokens), naturalTokens);
    return { prefix: tokens.subarray(0, prefixTokens), continuation };
  });
}

/**
 * Metrics that compare between layers and streams. Energies over the residual stream's own, which the next norm divides
 * by, are a first guess.
 */
async function comparableMetrics(
  documents: readonly ReadDocument[],
  { metrics, residualEnergy }: AttentionCosts,
  importance: readonly DocumentCosts['importance'][],
  { sinks, naturalTokens, stepExponent }: Setting,
  options: MeasureOptions,
): Promise<Record<StreamKind, HeadMetrics>> {
  const { exactModel, signal, onEvent } = options;
  const scales = residualEnergy.map((energy) => 1 / energy);
  const value = scaleLayers(metrics.value, scales);
  const key = scaleLayers(metrics.key, scales);
  if (exactModel === undefined) {
    return {
      key: { ...key, blocks: key.blocks.map((entry) => KEY_WEIGHT * entry) },
      value,
    };
  }
  const half = LAYER_LOSSES.tokens / 2;
  const weighed = spreadOver(documents.length).map((index): WeighedDocument => {
    const { prefix, continuation } = documents[index]!;
    const short = new Int32Array(LAYER_LOSSES.tokens);
    short.set(continuation.subarray(0, half));
    short.set(continuation.subarray(naturalTokens, naturalTokens + half), half);
    const steps = (stream: StreamKind): Float64Array =>
      stepsOf(importance[index]![stream].subarray(sinks), stepExponent);
    return { prefix, continuation: short, tokenSteps: { key: steps('key'), value: steps('value') } };
  });
  const workDirectory = workDirectoryOf(options);
  return weighLayers({ key, value }, weighed, { exactModel, sinks, workDirectory, signal, onEvent });
}

function importanceOf(
  documents: readonly ReadDocument[],
  measured: readonly DocumentCosts['importance'][],
): TokenImportance {
  const documentTokens = documents[0]?.prefix.length ?? 0;
  const size = documents.length * documentTokens;
  const importance = { key: new Float32Array(size), value: new Float32Array(size) };
  const tokens = new Int32Array(size);
  for (const [d, { prefix }] of documents.entries()) {
    tokens.set(prefix, d * documentTokens);
    for (const stream of STREAMS) {
      importance[stream].set(measured[d]?.[stream] ?? [], d * documentTokens);
    }
  }
  return { tokens, documents: documents.length, documentTokens, prefixTokens: documentTokens, ...importance };
}
