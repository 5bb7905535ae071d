// Joins the engine and the calibration room: texts → tokens → prefill → rows → profile.
// Does not know: moments, bases, plans, files' layouts.

import { join } from 'node:path';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim, streamWidth } from '../base/geometry.ts';
import { PRODUCER } from '../base/version.ts';
import type { CalibrateOptions, CalibrationResult } from '../calibration/calibrate.ts';
import { CALIBRATION_DEFAULTS, calibrateDocuments } from '../calibration/calibrate.ts';
import type { DocumentRows } from '../calibration/collect.ts';
import { IMPORTANCE_GROUP } from '../calibration/fit-coding.ts';
import type { TextGroup } from '../calibration/sample.ts';
import { sampleDocuments } from '../calibration/sample.ts';
import { readMeasuredMoments } from '../calibration/measured-moments.ts';
import type { Sensitivity } from '../calibration/sensitivity-file.ts';
import { readSensitivity } from '../calibration/sensitivity-file.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { gatherRows, parseState, rowBytesOf } from '../engines/llama/state.ts';
import type { Backend } from '../linalg/backend.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { measureSensitivity } from '../sensitivity/measure.ts';
import { weighSensitivity } from '../sensitivity/weigh-layers.ts';
import { profileSize } from './inspect.ts';
import { ggufEmbeddings } from './model-embeddings.ts';

/** 20 000 tokens fit a first profile in minutes; 100 000 and more lower the KL further (docs/results.md). */
const SAMPLE_DEFAULTS = { tokens: 20_000, documentTokens: 2048 } as const;

/** Added to the seed beside moments measured elsewhere: with the same seed their documents might be the sample's. */
const OTHER_SEED = 1_000_003;

export interface CalibrateModelOptions
  extends
    RunOptions,
    Pick<
      CalibrateOptions,
      | 'output'
      | 'exponent'
      | 'rank'
      | 'ratios'
      | 'seed'
      | 'sinks'
      | 'workDirectory'
      | 'part'
      | 'parts'
      | 'layersPerBasis'
      | 'keepWork'
    > {
  /** GGUF file. */
  readonly model: string;
  /** Groups get equal shares of the tokens. Typical prompts of the user's own make the best profile. */
  readonly texts: readonly TextGroup[];
  readonly tokens?: number | undefined;
  /** Tokens of one document: the positions the rows come from. */
  readonly documentTokens?: number | undefined;
  /** Which codec the profile is for; default wtc. */
  readonly codec?: 'paper' | 'wtc' | undefined;
  /**
   * wtc: a sensitivity file of this model (docs/format/sensitivity.md), or `none`: all errors count alike then. Default:
   * it is measured by forward passes on the same texts and kept in the work directory.
   */
  readonly sensitivity?: string | undefined;
  /**
   * Path of the same model with weights of f32 or f16: the sensitivity's layers are weighed by what errors of their rows do
   * to its output.
   */
  readonly exactModel?: string | undefined;
  /** A moments file of this model (docs/format/sensitivity.md): the texts are then only held out. */
  readonly moments?: string | undefined;
  /**
   * wtc: learn what token ids tell. The profile then needs the model's file wherever it codes or restores. Default: where
   * the moments of `moments` have it, and not where rows are collected here: how many
   * tokens that wants was not measured.
   */
  readonly tokenIds?: boolean | undefined;
  readonly threads?: number | undefined;
}

export interface ModelCalibration extends CalibrationResult {
  /** Of the documents that the moments come from and, unless these were measured elsewhere, the held-out ones. */
  readonly tokens: number;
  readonly documents: number;
  /** wtc: what told the output's sensitivity to errors; null for the paper's codec. */
  readonly sensitivity: 'none' | 'forward' | 'gradient' | null;
  /** Whether its layers were weighed by losses of an exact model. */
  readonly layersWeighed: boolean;
  /** Time that measuring and weighing it took; 0 where neither was done. */
  readonly sensitivityMs: number;
  /** See ProfileSize; absent for a share of a calibration. */
  readonly matrixEntries?: number | undefined;
  readonly parameterShare?: number | null | undefined;
  /** The engine's own time within `elapsedMs.collect`. */
  readonly prefillMs: number;
}

/**
 * Learns a profile of a model from texts and writes it (safetensors, docs/format/profile.md). Model weights stay
 * untouched. Interrupted runs resume when called again with the same texts and settings.
 * Events: phases `sensitivity`, `layers`, `moments`, `held-out`, `basis`, `plan`.
 * Throws KVTC_CALIBRATION_TEXT_SHORT, KVTC_OPTION_INVALID, KVTC_SENSITIVITY_MALFORMED, KVTC_MODEL_UNSUPPORTED, KVTC_ENGINE_*, KVTC_ROWS_NOT_FINITE,
 * KVTC_MOMENTS_*, KVTC_MODEL_MISMATCH, KVTC_WRITE_FAILED, KVTC_ABORTED. Source: paper §3.1-3.2, B.1.
 */
export async function calibrate(options: CalibrateModelOptions): Promise<ModelCalibration> {
  const { signal, onEvent } = options;
  const tokens = options.tokens ?? SAMPLE_DEFAULTS.tokens;
  const documentTokens = options.documentTokens ?? SAMPLE_DEFAULTS.documentTokens;
  const seed = options.seed ?? CALIBRATION_DEFAULTS.seed;
  for (const [name, value, least] of [
    ['tokens', tokens, 512],
    ['documentTokens', documentTokens, 128],
    ['seed', seed, 0],
    ['layersPerBasis', options.layersPerBasis ?? 1, 1],
  ] as const) {
    if (!Number.isSafeInteger(value) || value < least) {
      throw new KvtcError('KVTC_OPTION_INVALID', `${name} is ${value}; expected an integer of at least ${least}`, {
        option: name,
        got: value,
      });
    }
  }
  const codec = options.codec ?? 'wtc';
  if (codec !== 'wtc' && (options.sensitivity !== undefined || options.exponent !== undefined)) {
    throw new KvtcError('KVTC_OPTION_INVALID', 'sensitivity and exponent are for the codec wtc');
  }
  const model = await openModel(options.model, { threads: options.threads, signal });
  const backend = openGgmlBackend({ threads: options.threads });
  try {
    const startedMs = performance.now();
    const sensitivity = await sensitivityOf({ ...options, codec }, model, backend);
    const layersWeighed = options.exactModel !== undefined && sensitivity !== undefined;
    const sensitivityMs = options.sensitivity === undefined || layersWeighed ? performance.now() - startedMs : 0;
    const moments =
      options.moments === undefined ? undefined : await readMeasuredMoments(options.moments, model.identity);
    const sinks = options.sinks ?? moments?.sinks ?? CALIBRATION_DEFAULTS.sinks;
    const documents = sampleDocuments(options.texts, {
      tokens,
      documentTokens,
      seed: moments === undefined ? seed : seed + OTHER_SEED,
      tokenize: (text) => model.tokenize(text, { addSpecial: false }),
    });
    throwIfAborted(signal);
    const found = documents.reduce((sum, document) => sum + document.tokens.length, 0);
    if (found < tokens && moments === undefined)
      onEvent?.({ type: 'warning', message: `the texts give ${found} of the ${tokens} tokens asked for` });
    const tokenIds = codec === 'wtc' && (options.tokenIds ?? moments !== undefined);
    const contextTokens = Math.max(documentTokens, sensitivity?.importance?.documentTokens ?? 0);
    const context = await model.createContext({ contextTokens, batchTokens: documentTokens });
    let prefillMs = 0;
    try {
      const result = await calibrateDocuments({
        model: model.identity,
        documents,
        moments,
        rows: async (document, run) => {
          const startedMs = performance.now();
          context.clear();
          await context.decode(document.tokens, { signal: run.signal });
          if (document.group !== IMPORTANCE_GROUP) prefillMs += performance.now() - startedMs;
          return documentRows(model, context, backend, sinks);
        },
        backend,
        embeddings: tokenIds ? ggufEmbeddings(await readGguf(options.model)) : undefined,
        output: options.output,
        producer: PRODUCER,
        modelParameters: await countParameters(model),
        codec: codec === 'wtc' ? codec : 'kvtc-paper',
        sensitivity,
        exponent: options.exponent,
        rank: options.rank,
        ratios: options.ratios,
        seed,
        sinks,
        workDirectory: options.workDirectory,
        part: options.part,
        parts: options.parts,
        layersPerBasis: options.layersPerBasis,
        keepWork: options.keepWork,
        signal,
        onEvent,
      });
      const method = codec === 'wtc' ? (sensitivity?.method ?? 'none') : null;
      const used = moments?.documents ?? documents;
      const usedTokens = used.reduce((sum, document) => sum + document.tokens.length, 0);
      const size = result.profileId === null ? null : await profileSize(options.output);
      return {
        ...result,
        ...size,
        tokens: usedTokens,
        documents: used.length,
        sensitivity: method,
        layersWeighed,
        sensitivityMs,
        prefillMs,
      };
    } finally {
      context.close();
    }
  } finally {
    backend.close();
    model.close();
  }
}

async function countParameters({ path }: LlamaModel): Promise<number> {
  const { tensors } = await readGguf(path);
  return [...tensors.values()].reduce((sum, { dims }) => sum + dims.reduce((product, dim) => product * dim, 1), 0);
}

/** Read or measured; undefined where errors count alike, and for a share of a calibration, which fits nothing. */
async function sensitivityOf(
  { codec, sensitivity, part, signal, onEvent, ...options }: CalibrateModelOptions,
  model: LlamaModel,
  backend: Backend,
): Promise<Sensitivity | undefined> {
  if (codec !== 'wtc' || sensitivity === 'none' || (part !== undefined && part.count > 1)) return undefined;
  const read = sensitivity === undefined ? null : await readSensitivity(sensitivity, model.identity);
  const { texts, output, threads, sinks = CALIBRATION_DEFAULTS.sinks } = options;
  const directory = options.workDirectory ?? `${output}.work`;
  const run = { workDirectory: join(directory, 'sensitivity'), signal, onEvent };
  const exactModel =
    options.exactModel === undefined ? undefined : await openModel(options.exactModel, { threads, signal });
  try {
    if (read === null) {
      const file = join(directory, 'sensitivity.safetensors');
      return await measureSensitivity({ model, exactModel, backend, texts, output: file, ...run });
    }
    return exactModel === undefined ? read : await weighSensitivity(read, model, { exactModel, sinks, ...run });
  } finally {
    exactModel?.close();
  }
}

/** Rows of the context's sequence 0 with RoPE undone, from the first token after the sinks. */
async function documentRows(
  model: LlamaModel,
  context: LlamaContext,
  backend: Backend,
  sinks: number,
): Promise<DocumentRows> {
  const { geometry, rope } = model.identity;
  const view = parseState(context.getState());
  const range = { startToken: Math.min(sinks, view.tokenCount), endToken: view.tokenCount };
  const rowCount = range.endToken - range.startToken;
  const positions = view.positions.slice(range.startToken);
  const values: Partial<Record<StreamKind, Float32Array>> = {};
  for (const stream of STREAMS) {
    const element = stream === 'key' ? view.keyType : view.valueType;
    if (element === 'q8_0')
      throw new KvtcError('KVTC_STATE_UNSUPPORTED', 'calibration needs an f16, bf16 or f32 cache');
    const rows = new Uint8Array(rowCount * geometry.layers * rowBytesOf(view, stream));
    gatherRows(view, stream, { startLayer: 0, endLayer: geometry.layers }, range, rows);
    const out = new Float32Array(rowCount * streamWidth(geometry, stream)); // [tokens, p]
    const layout = { layers: geometry.layers, heads: geometry.kvHeads, headDim: headDim(geometry, stream), element };
    await backend.readRows(layout, stream === 'key' ? rope : null, rows, positions, out);
    values[stream] = out;
  }
  const { key, value } = values as Record<StreamKind, Float32Array>;
  return { rowCount, key, value };
}
