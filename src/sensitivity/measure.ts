// Measures a model's sensitivity by forward passes alone: texts → engine → attention costs, noise probes → the file that
// kvtc_collect writes by gradients. Does not know how sensitivities are used.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { PRODUCER } from '../base/version.ts';
import type { TextGroup } from '../calibration/sample.ts';
import { sampleDocuments } from '../calibration/sample.ts';
import type { HeadMetrics, Sensitivity, TokenImportance } from '../calibration/sensitivity-file.ts';
import { writeSensitivity } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { AttentionCosts } from './attention-costs.ts';
import { attentionCosts } from './attention-costs.ts';
import type { ProbeDocument, Probes } from './noise-probes.ts';
import { probeNoise } from './noise-probes.ts';

/** docs/results.md has what fewer or more documents change. */
const SENSITIVITY_DEFAULTS = {
  documents: 12,
  prefixTokens: 1024,
  naturalTokens: 192,
  copyTokens: 192,
  /**
   * Documents that noise is put into, and the tokens of each part that are scored after it. None by default: the residual
   * stream's energy weighs layers as well (SmolLM2: CR at the KL and copy KL of paper 16x 88, 77 without probes, 79, 72
   * with 4 documents of them).
   */
  probedDocuments: 0,
  probeTokens: 96,
  pairs: 1024,
  sinks: 4,
  window: 128,
  seed: 21,
} as const;

/**
 * Keys cost this many times what first order says: errors of scores act through an exponential. Without it SmolLM2 has
 * CR 77, 62 instead of 88, 77.
 */
const KEY_WEIGHT = 4;

/** Tokens between a copied passage and the ends of the prefix. */
const COPY_MARGIN = 8;

export interface MeasureOptions extends RunOptions {
  /**
   * GGUF file with f32 or f16 weights (quantizeModel): quantised weights round activations, which drowns small changes.
   */
  readonly model: string;
  /** Identity of the published model that `model` is a copy of; default: that of `model` itself. */
  readonly identity?: ModelIdentity | undefined;
  readonly texts: readonly TextGroup[];
  /** Sensitivity file to write. */
  readonly output: string;
  readonly documents?: number | undefined;
  readonly prefixTokens?: number | undefined;
  readonly probedDocuments?: number | undefined;
  readonly seed?: number | undefined;
  readonly threads?: number | undefined;
}

/**
 * Measures and writes a sensitivity file of method `forward`. Takes documents · (prefix + 384) + probedDocuments · layers
 * · 384 tokens of the engine's time. Events: phases `attention` (documents) and `probes`.
 * Throws KVTC_OPTION_INVALID, KVTC_CALIBRATION_TEXT_SHORT, KVTC_MODEL_UNSUPPORTED for quantised weights, KVTC_ABORTED,
 * KVTC_WRITE_FAILED, and what the engine throws.
 */
export async function measureSensitivity(options: MeasureOptions): Promise<Sensitivity> {
  const setting = settingsOf(options);
  const { signal, onEvent } = options;
  const gguf = await readGguf(options.model);
  const model = await openModel(options.model, { threads: options.threads, signal });
  const backend = openGgmlBackend({ threads: options.threads });
  try {
    const documents = probeDocuments(model, options.texts, setting);
    onEvent?.({ type: 'progress', phase: 'attention', done: 0, total: documents.length, unit: 'documents' });
    const costs = await attentionCosts(model, gguf, documents, {
      ...setting,
      backend,
      signal,
      onDocument: (done) =>
        onEvent?.({ type: 'progress', phase: 'attention', done, total: documents.length, unit: 'documents' }),
    });
    const probes: Probes[] = [];
    for (const [index, document] of documents.slice(0, setting.probedDocuments).entries()) {
      throwIfAborted(signal);
      probes.push(await probeDocument(model, document, costs, index, setting, options));
    }
    const { architecture, name, fingerprint, geometry } = options.identity ?? model.identity;
    const sensitivity: Sensitivity = {
      method: 'forward',
      producer: PRODUCER,
      model: { architecture, name, fingerprint, geometry },
      settings: setting,
      metrics: scaleLayers(costs, probes, geometry.layers),
      importance: importanceOf(documents, costs),
    };
    await writeSensitivity(options.output, sensitivity);
    return sensitivity;
  } finally {
    backend.close();
    model.close();
  }
}

type Setting = { readonly [K in keyof typeof SENSITIVITY_DEFAULTS]: number };

function settingsOf(options: MeasureOptions): Setting {
  const setting = {
    ...SENSITIVITY_DEFAULTS,
    documents: options.documents ?? SENSITIVITY_DEFAULTS.documents,
    prefixTokens: options.prefixTokens ?? SENSITIVITY_DEFAULTS.prefixTokens,
    probedDocuments: options.probedDocuments ?? SENSITIVITY_DEFAULTS.probedDocuments,
    seed: options.seed ?? SENSITIVITY_DEFAULTS.seed,
  };
  for (const [option, least, most] of [
    ['documents', 1, 4096],
    ['prefixTokens', setting.copyTokens + setting.window + setting.sinks + 2 * COPY_MARGIN, 1 << 20],
    ['probedDocuments', 0, setting.documents],
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
function probeDocuments(model: LlamaModel, texts: readonly TextGroup[], setting: Setting): ProbeDocument[] {
  const { documents, prefixTokens, naturalTokens, copyTokens, seed } = setting;
  const documentTokens = prefixTokens + naturalTokens;
  const found = sampleDocuments(texts, {
    tokens: documents * documentTokens,
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
    return { prefix: tokens.subarray(0, prefixTokens), continuation, naturalTokens };
  });
}

/** Probes all layers after the first tokens of both parts of a document's continuation. */
async function probeDocument(
  model: LlamaModel,
  { prefix, continuation, naturalTokens }: ProbeDocument,
  { metrics, residualEnergy }: AttentionCosts,
  index: number,
  setting: Setting,
  { signal, onEvent }: MeasureOptions,
): Promise<Probes> {
  const { probeTokens } = setting;
  const shortened = new Int32Array(2 * probeTokens);
  shortened.set(continuation.subarray(0, probeTokens));
  shortened.set(continuation.subarray(naturalTokens, naturalTokens + probeTokens), probeTokens);
  const context = await model.createContext({
    contextTokens: prefix.length + shortened.length,
    batchTokens: Math.max(512, shortened.length),
  });
  try {
    return await probeNoise(
      { prefix, continuation: shortened, naturalTokens: probeTokens },
      {
        model: model.identity,
        vocabulary: model.vocabSize,
        context,
        factors: { key: factorMetrics(metrics.key), value: factorMetrics(metrics.value) },
        expected: residualEnergy.map((energy) => 1 / energy),
        sinks: setting.sinks,
        window: setting.window,
        seed: (setting.seed + 1) * 1000 * (index + 1),
        signal,
        onEvent,
      },
    );
  } finally {
    context.close();
  }
}

/**
 * Metrics that compare between layers and streams: energies over the residual stream's own, which the next norm divides
 * by. With probes, the geometric mean of that and KL over noise: probes alone are noisier than what they correct.
 */
function scaleLayers(
  { metrics, residualEnergy }: AttentionCosts,
  probes: readonly Probes[],
  layers: number,
): Record<StreamKind, HeadMetrics> {
  const scaled: Partial<Record<StreamKind, HeadMetrics>> = {};
  for (const stream of STREAMS) {
    const assumed = residualEnergy.map((energy) => (stream === 'key' && probes.length === 0 ? KEY_WEIGHT : 1) / energy);
    const scales = probes.length === 0 ? assumed : probedScales(stream, probes, assumed);
    const { blocks } = metrics[stream];
    const perLayer = blocks.length / layers;
    scaled[stream] = {
      ...metrics[stream],
      blocks: blocks.map((value, i) => value * scales[Math.floor(i / perLayer)]!),
    };
  }
  return scaled as Record<StreamKind, HeadMetrics>;
}

/** A layer that shows nothing under noise is taken at a hundredth of the median: it would be a hole otherwise. */
function probedScales(stream: StreamKind, probes: readonly Probes[], assumed: Float64Array): Float64Array {
  const shown = assumed.map((_, layer) => {
    const sum = (part: keyof Probes): number => probes.reduce((total, p) => total + p[part][stream][layer]!, 0);
    const energy = sum('energy');
    return energy > 0 ? (sum('natural') + sum('copy')) / energy : 0;
  });
  const least = shown.toSorted()[shown.length >> 1]! / 100;
  return assumed.map((scale, layer) => Math.sqrt(scale * Math.max(least, shown[layer]!)));
}

function importanceOf(documents: readonly ProbeDocument[], costs: AttentionCosts): TokenImportance {
  const documentTokens = documents[0]?.prefix.length ?? 0;
  const size = documents.length * documentTokens;
  const importance = { key: new Float32Array(size), value: new Float32Array(size) };
  const tokens = new Int32Array(size);
  for (const [d, { prefix }] of documents.entries()) {
    tokens.set(prefix, d * documentTokens);
    for (const stream of STREAMS) {
      importance[stream].set(costs.importance[d]?.[stream] ?? [], d * documentTokens);
    }
  }
  return { tokens, documents: documents.length, documentTokens, ...importance };
}
