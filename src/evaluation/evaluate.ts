// `kvtc evaluate`: profiles judged on a model and texts, a row per ratio, beside the engine's own noise.
// Joins model, profiles, exact weights, documents and treatments; does not know how any of them works.

import { availableParallelism } from 'node:os';
import type { RunOptions } from '../base/events.ts';
import { COMPRESS_DEFAULTS } from '../cache/compress.ts';
import type { EndModes, SinkMode, WindowMode } from '../cache/chunk-seam.ts';
import { openTransforms } from '../cache/transforms.ts';
import type { Transforms } from '../cache/transforms.ts';
import { modelIdentity } from '../engines/llama/architecture.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import type { ContextOptions, LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import type { Profile } from '../profile/profile.ts';
import type { CloseUp } from './close-up.ts';
import { measureCloseUp } from './close-up.ts';
import type { EvaluationText } from './documents.ts';
import { cutDocuments } from './documents.ts';
import { openEvaluatedProfiles } from './evaluated-profiles.ts';
import { exactWeights } from './exact-weights.ts';
import type { PlannedTreatment } from './measure.ts';
import { measureTasks, measureTreatments } from './measure.ts';
import type { Machine } from './provenance.ts';
import { codeVersion, describeMachine } from './provenance.ts';
import type { RivalSet } from './rivals/rivals.ts';
import { rivalTreatments } from './rivals/rivals.ts';
import { openRunFile } from './run-file.ts';
import type { EvaluationRow } from './summary.ts';
import { summarise } from './summary.ts';
import type { TaskOptions } from './tasks/collect.ts';
import { collectTasks } from './tasks/collect.ts';
import { questionTokens } from './tasks/item.ts';
import type { Treatment } from './treatment.ts';
import { floorTreatment, kvtcTreatment, usualModes } from './treatment.ts';

/** The protocol of the evidence this project measures against. */
export const EVALUATE_DEFAULTS = {
  prefixTokens: 3072,
  continuationTokens: 1024,
  copyTokens: 512,
  sliceTokens: 256,
  documents: 6,
  weights: 'exact',
  sinks: COMPRESS_DEFAULTS.sinks,
  window: COMPRESS_DEFAULTS.window,
} as const;

/** The floor varies little between documents; a few show it. */
const FLOOR_DOCUMENTS = 3;

/** Tokens computed at once: full speed of prefill, and bounds the engine's buffer of logits. */
const BATCH_TOKENS = 512;

/** `exact`: an f32 or f16 copy of the weights, which shows the codec; `as-is`: the file as it is, which shows the use. */
export type WeightsChoice = 'exact' | 'as-is';

export interface EvaluateOptions extends RunOptions, EndModes {
  /** GGUF file. */
  readonly modelPath: string;
  readonly profilePath: string;
  /** Further profiles of the model, of whatever codec, on the same documents and prefixes. */
  readonly alsoProfilePaths?: readonly string[] | undefined;
  readonly texts: readonly EvaluationText[];
  /** Each profile is judged at those it serves. Default: all it has plans for, or usual ones within its steps. */
  readonly ratios?: readonly number[] | undefined;
  readonly prefixTokens?: number | undefined;
  readonly continuationTokens?: number | undefined;
  /** Default 512, or two thirds of a shorter prefix. */
  readonly copyTokens?: number | undefined;
  /** Documents over all kinds of text; fewer when the texts run out. 0 runs tasks alone. */
  readonly documents?: number | undefined;
  readonly weights?: WeightsChoice | undefined;
  readonly sinks?: number | undefined;
  readonly window?: number | undefined;
  /** Where copies of weights are kept. */
  readonly cacheDirectory: string;
  /** File of finished results, to go on after an interruption; none by default. */
  readonly runPath?: string | null | undefined;
  readonly threads?: number | undefined;
  /** Also look closely at one document, as a report needs it; off by default. */
  readonly closeUp?: boolean | undefined;
  /** Tasks to run beside the documents; none by default. */
  readonly tasks?: TaskOptions | undefined;
  /** Rival codecs on the same documents and tasks; none by default. */
  readonly rivals?: readonly RivalSet[] | undefined;
  /** Further treatments on the same documents and tasks. */
  readonly treatments?: ((given: TreatmentWorld) => readonly Treatment[] | Promise<readonly Treatment[]>) | undefined;
  /** What the user typed, for the record. */
  readonly command?: string | undefined;
}

/** What treatments may be made of. All of it is closed after the run. */
export interface TreatmentWorld {
  /** Of the first profile. */
  readonly transforms: Transforms;
  readonly model: LlamaModel;
  /** Options of the context that the exact cache runs in. */
  readonly context: ContextOptions;
  readonly sinks: number;
  readonly window: number;
  /** Closes something after the run, before the world itself. */
  readonly onClose: (close: () => void | Promise<void>) => void;
}

export interface Evaluation {
  /** Profile by profile a row per ratio, then one per further treatment. */
  readonly rows: readonly EvaluationRow[];
  /** What the engine's own rounding costs, on the first documents. */
  readonly floor: EvaluationRow;
  readonly settings: {
    readonly model: string;
    readonly modelFingerprint: string;
    /** Of the first profile. */
    readonly profileId: string;
    /** Missing in results of versions before 0.2. */
    readonly profiles?: readonly {
      readonly name: string;
      readonly id: string;
      readonly codec: Profile['codec'];
      /** Missing, and exact, in results of versions before 28 November 2026. */
      readonly sinkMode?: SinkMode;
      readonly windowMode: WindowMode;
      readonly ratios: readonly number[];
    }[];
    readonly weights: 'f32' | 'f16' | 'as-is';
    readonly prefixTokens: number;
    readonly continuationTokens: number;
    readonly copyTokens: number;
    readonly sinks: number;
    readonly window: number;
    readonly documents: readonly { readonly kind: string; readonly source: string; readonly sha256: string }[];
    readonly tasks: readonly { readonly kind: string; readonly source: string; readonly sha256: string }[];
  };
  readonly machine: Machine;
  /** Commit of the code that ran, or the package's version. */
  readonly commit: string;
  /** What the user typed; empty for calls of the library. */
  readonly command: string;
  readonly elapsedMs: number;
  /** Of it, the engine's decoding of documents and tasks; rivals that run contexts of their own not counted. */
  readonly engineMs: number;
  /** Of the first profile on the first document, where asked for. */
  readonly closeUp?: CloseUp | undefined;
}

/**
 * Evaluates the ratios of profiles on documents cut from `texts` by the protocol of protocol.ts. Memory: model, context,
 * two states, 4 · (continuation + copy) · vocabulary bytes. Throws KVTC_FILE_NOT_FOUND, KVTC_MODEL_MISMATCH when the
 * profile belongs to another model, KVTC_PLAN_MISSING, KVTC_PROMPT_EMPTY when no document can be cut,
 * KVTC_OPTION_INVALID, KVTC_RUN_MALFORMED, KVTC_ABORTED, and what engine and codec throw.
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluation> {
  const startedMs = performance.now();
  const { signal, onEvent } = options;
  const setting = settingsOf(options);
  const threads = options.threads ?? availableParallelism();
  const closers: (() => void | Promise<void>)[] = [];
  try {
    const identity = await modelIdentity(await readGguf(options.modelPath));
    const paths = [options.profilePath, ...(options.alsoProfilePaths ?? [])];
    const profiles = await openEvaluatedProfiles(paths, identity, options, (close) => closers.push(close));
    const runFile = await openRunFile(options.runPath ?? null);
    closers.push(() => runFile.close());
    const weights =
      setting.weights === 'as-is'
        ? { path: options.modelPath, type: 'as-is' as const }
        : await exactWeights(options.modelPath, options.cacheDirectory, { signal, onEvent });
    const model = await openModel(weights.path, { threads, signal });
    closers.push(() => model.close());
    const { prefixTokens, continuationTokens, copyTokens, sliceTokens } = setting;
    const tokenize = (text: string): Int32Array => model.tokenize(text, { addSpecial: false });
    const items = await collectTasks(options.tasks, { texts: options.texts, prefixTokens, tokenize });
    const documents =
      setting.documents === 0 && items.length > 0
        ? []
        : await cutDocuments(options.texts, {
            documentTokens: prefixTokens + continuationTokens,
            documents: setting.documents,
            tokenize,
          });
    if (documents.length < setting.documents) {
      const message = `the texts give ${documents.length} documents of ${prefixTokens} + ${continuationTokens} tokens, ${setting.documents} were asked for`;
      onEvent?.({ type: 'warning', message });
    }
    const contextTokens = Math.max(
      documents.length === 0 ? 0 : prefixTokens + Math.max(continuationTokens, copyTokens),
      ...items.flatMap((item) => item.questions.map((question) => item.prefix.length + questionTokens(question))),
    );
    if (contextTokens > model.trainedContext) {
      const message = `documents and tasks reach ${contextTokens} tokens, the model was trained for ${model.trainedContext}`;
      onEvent?.({ type: 'warning', message });
    }
    const contextOptions = { contextTokens, batchTokens: BATCH_TOKENS };
    const context = await model.createContext(contextOptions);
    closers.push(() => context.close());
    const backend = openGgmlBackend({ threads });
    closers.push(() => backend.close());
    const { sinks, window } = setting;
    const judged = profiles.map((one) => {
      const transforms = openTransforms(one.profile, backend, { model: options.modelPath });
      closers.push(() => transforms.close());
      return { ...one, transforms };
    });
    const first = judged[0] as (typeof judged)[number]; // there is at least one path
    const world: TreatmentWorld = {
      transforms: first.transforms,
      model,
      context: contextOptions,
      sinks,
      window,
      onClose: (close) => closers.push(close),
    };
    const coded = [
      ...judged.flatMap(({ name, transforms, ratios, modes }) =>
        ratios.map((ratio) => kvtcTreatment(transforms, { ratio, sinks, window, ...modes }, name)),
      ),
      // What varies settings makes no curve of rate against loss.
      ...[...rivalTreatments(options.rivals ?? [], world), ...((await options.treatments?.(world)) ?? [])].map(
        (treatment) => ({ ...treatment, series: undefined }),
      ),
    ];
    const plan: PlannedTreatment[] = [
      { treatment: floorTreatment, documents: Math.min(FLOOR_DOCUMENTS, documents.length) },
      ...coded.map((treatment) => ({ treatment, documents: documents.length })),
    ];
    const common = {
      context,
      vocabulary: model.vocabSize,
      model: identity.fingerprint,
      weights: weights.type,
      runFile,
      signal,
      onEvent,
    };
    const shape = { prefixTokens, continuationTokens, copyTokens, sliceTokens };
    const measured = documents.length === 0 ? [] : await measureTreatments({ ...common, documents, plan, shape });
    const everyItem = plan.map(({ treatment }) => ({ treatment, documents: items.length }));
    const answered = items.length === 0 ? [] : await measureTasks({ ...common, items, plan: everyItem });
    const [document] = documents;
    const closeUp =
      options.closeUp === true && document !== undefined
        ? await measureCloseUp({ ...first, context, document, prefixTokens, sinks, window, signal, onEvent })
        : undefined;
    const [floor, ...rows] = plan.map(({ treatment }, i) =>
      summarise(treatment, measured[i]?.results ?? [], answered[i]?.results),
    );
    return {
      rows,
      floor: floor as EvaluationRow,
      settings: {
        model: identity.name,
        modelFingerprint: identity.fingerprint,
        profileId: first.profile.id,
        profiles: judged.map(({ name, profile, ratios, modes }) => ({
          name,
          id: profile.id,
          codec: profile.codec,
          ...usualModes(profile),
          ...modes,
          ratios,
        })),
        weights: weights.type,
        prefixTokens,
        continuationTokens,
        copyTokens,
        sinks,
        window,
        documents: documents.map(({ kind, source, sha256 }) => ({ kind, source, sha256 })),
        tasks: items.map(({ kind, source, sha256 }) => ({ kind, source, sha256 })),
      },
      machine: describeMachine(threads, model.engine),
      commit: await codeVersion(),
      command: options.command ?? '',
      elapsedMs: performance.now() - startedMs,
      engineMs: context.decodeMs,
      closeUp,
    };
  } finally {
    for (const close of closers.toReversed()) await close();
  }
}

function settingsOf(options: EvaluateOptions) {
  const defaults = EVALUATE_DEFAULTS;
  const prefixTokens = options.prefixTokens ?? defaults.prefixTokens;
  return {
    prefixTokens,
    continuationTokens: options.continuationTokens ?? defaults.continuationTokens,
    copyTokens: options.copyTokens ?? Math.min(defaults.copyTokens, prefixTokens - Math.floor(prefixTokens / 3)),
    sliceTokens: defaults.sliceTokens,
    documents: options.documents ?? defaults.documents,
    weights: options.weights ?? defaults.weights,
    sinks: options.sinks ?? defaults.sinks,
    window: options.window ?? defaults.window,
  };
}
