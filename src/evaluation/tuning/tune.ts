// `kvtc tune`: chooses a wtc profile's exponent of token steps and its ratio of value to key steps by what they cost at
// equal size, measured through the engine, and measures the table of steps anew. Does not know: how a loss is measured,
// how settings are searched. Source: evidence.md 2: token steps trade copying for prediction, so both are measured.

import { availableParallelism } from 'node:os';
import { KvtcError } from '../../base/errors.ts';
import type { RunOptions } from '../../base/events.ts';
import { throwIfAborted } from '../../base/events.ts';
import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS, streamWidth } from '../../base/geometry.ts';
import { openTransforms } from '../../cache/transforms.ts';
import type { Transforms } from '../../cache/transforms.ts';
import { measureSteps } from '../../calibration/measure-steps.ts';
import type { TextGroup } from '../../calibration/sample.ts';
import { stepOf } from '../../codec/wtc/classes.ts';
import { modelIdentity } from '../../engines/llama/architecture.ts';
import { readGguf } from '../../engines/llama/gguf.ts';
import { openModel } from '../../engines/llama/session.ts';
import { openGgmlBackend } from '../../linalg/ggml/backend.ts';
import type { StepPoint, WtcProfile } from '../../profile/profile.ts';
import type { TuningRecord } from '../../profile/tuning.ts';
import { rewriteProfile } from '../../profile/write-profile.ts';
import type { EvaluationDocument } from '../documents.ts';
import type { WeightsChoice } from '../evaluate.ts';
import { openEvaluatedProfiles } from '../evaluated-profiles.ts';
import { exactWeights } from '../exact-weights.ts';
import type { Scores } from '../metrics.ts';
import { addScores, meanScores } from '../metrics.ts';
import { checkShape } from '../measure.ts';
import type { ProtocolShape } from '../protocol.ts';
import { createReference, prefill, runDocument } from '../protocol.ts';
import type { ProtocolContext, Treatment } from '../treatment.ts';
import { kvtcTreatment } from '../treatment.ts';
import type { CachedCoefficients, SizedSetting } from './equal-bits.ts';
import { cachedCoefficients, codedBytes, profileWith, stepForBytes } from './equal-bits.ts';
import type { TunedLoss, TunedSetting } from './search.ts';
import { EXPONENTS, searchSettings } from './search.ts';
import type { SampledTexts } from './tuning-documents.ts';
import { leftDocuments, newDocuments } from './tuning-documents.ts';

/** Long enough for copies from afar, short enough to try ten settings in minutes; at 48x losses are plain to see. */
const TUNE_DEFAULTS = {
  documents: 3,
  prefixTokens: 1536,
  continuationTokens: 384,
  copyTokens: 256,
  ratio: 48,
  weights: 'exact',
} as const;

/** Tokens of one scored call at most, and of one computed batch. */
const SLICE_TOKENS = 128;
const BATCH_TOKENS = 512;

export interface TuneOptions extends RunOptions {
  /** GGUF file. */
  readonly modelPath: string;
  /** Of wtc; rewritten. */
  readonly profilePath: string;
  /** Documents are cut from them, the groups in turn. They should not have been calibrated on. */
  readonly texts: readonly TextGroup[];
  /** The texts were calibrated on, sampled so: documents come from what that left, or from its last ones. */
  readonly calibrated?: SampledTexts | undefined;
  /** Default 3; 0 leaves the profile as it is. */
  readonly documents?: number | undefined;
  readonly prefixTokens?: number | undefined;
  readonly continuationTokens?: number | undefined;
  /** Where settings are compared: the profile's point nearest to this. Default 48. */
  readonly ratio?: number | undefined;
  /** As in evaluations: 4-bit weights as they are hide small losses. */
  readonly weights?: WeightsChoice | undefined;
  /** Where copies of weights are kept. */
  readonly cacheDirectory: string;
  readonly threads?: number | undefined;
}

export interface Tuning {
  /** What was tried; null where there was nothing to try it on. */
  readonly record: TuningRecord | null;
  /** Whether another setting was taken than before: the table of steps is then a new one. */
  readonly changed: boolean;
  /** Quality points of the old steps, which say nothing of the new ones and are gone from the profile. */
  readonly droppedQuality: number;
  /** The profile's table now. */
  readonly steps: readonly StepPoint[];
  readonly elapsedMs: number;
}

/** One document: its exact cache, run once, and that cache's coefficients. */
interface TuningCache {
  readonly document: EvaluationDocument;
  readonly state: Uint8Array;
  readonly coefficients: CachedCoefficients;
}

/**
 * Searches (searchSettings) from the profile's own setting at `ratio`, every setting coded to the same bytes on the same
 * documents, and writes what was tried and the new steps into the profile, which keeps its id. The file changes at the
 * very end and at once. Memory: model, context, per document its state and coefficients.
 * Throws KVTC_OPTION_INVALID for a profile of the paper's codec and settings that do not fit, KVTC_PROMPT_EMPTY,
 * KVTC_MODEL_MISMATCH, KVTC_WRITE_FAILED, KVTC_ABORTED, and what engine and codec throw.
 */
export async function tuneProfile(options: TuneOptions): Promise<Tuning> {
  const startedMs = performance.now();
  const { profilePath, modelPath, cacheDirectory, signal, onEvent } = options;
  const { documents: wanted, ratio, weights, shape } = settingsOf(options);
  const threads = options.threads ?? availableParallelism();
  const closers: (() => void | Promise<void>)[] = [];
  try {
    const identity = await modelIdentity(await readGguf(modelPath));
    const [opened] = await openEvaluatedProfiles([profilePath], identity, {}, (close) => closers.push(close));
    const profile = opened?.profile;
    if (profile?.codec !== 'wtc') {
      throw new KvtcError('KVTC_OPTION_INVALID', `${profilePath} is for ${profile?.codec}; only wtc has steps to tune`);
    }
    const unchanged = (): Tuning => ({
      record: null,
      changed: false,
      droppedQuality: 0,
      steps: profile.steps,
      elapsedMs: performance.now() - startedMs,
    });
    if (wanted === 0) return unchanged();
    const run = { signal, onEvent };
    const path = weights === 'as-is' ? modelPath : (await exactWeights(modelPath, cacheDirectory, run)).path;
    const model = await openModel(path, { threads, signal });
    closers.push(() => model.close());
    checkShape(shape, model.vocabSize);
    const documentTokens = shape.prefixTokens + shape.continuationTokens;
    const tokenize = (text: string): Int32Array => model.tokenize(text, { addSpecial: false });
    const cut = { documents: wanted, documentTokens, tokenize };
    const documents =
      options.calibrated === undefined
        ? await newDocuments(options.texts, cut)
        : leftDocuments(options.texts, options.calibrated, cut);
    if (documents.length < wanted) {
      const message = `the texts give ${documents.length} documents of ${documentTokens} tokens to tune on, ${wanted} were asked for`;
      onEvent?.({ type: 'warning', message });
    }
    if (documents.length === 0) return unchanged();
    const context = await model.createContext({
      contextTokens: shape.prefixTokens + Math.max(shape.continuationTokens, shape.copyTokens),
      batchTokens: BATCH_TOKENS,
    });
    closers.push(() => context.close());
    const backend = openGgmlBackend({ threads });
    closers.push(() => backend.close());
    const transforms = openTransforms(profile, backend, { model: modelPath });
    closers.push(() => transforms.close());

    const counter = tokenCounter(onEvent);
    const caches = await runPrefixes(documents, { context, transforms, shape, counter, signal });
    const coefficients = caches.map((cache) => cache.coefficients);
    const reference = createReference(shape, model.vocabSize);
    const point = nearestPoint(profile, ratio);
    const start = { exponent: point.exponent, valueOffset: point.value.stepIndex - point.key.stepIndex };
    const targetBytes = await codedBytes(profile, coefficients, start, point.key.stepIndex);
    let lastStepIndex = point.key.stepIndex;
    const measure = async (settings: readonly TunedSetting[]): Promise<(SizedSetting & TunedLoss)[]> => {
      const sized: SizedSetting[] = [];
      for (const setting of settings) {
        throwIfAborted(signal);
        const bytesAt = (keyStepIndex: number): Promise<number> => {
          throwIfAborted(signal);
          return codedBytes(profile, coefficients, setting, keyStepIndex);
        };
        const found = await stepForBytes(targetBytes, lastStepIndex, bytesAt);
        lastStepIndex = found.keyStepIndex;
        sized.push({ ...setting, ...found });
      }
      const treatments = sized.map((setting) => treatmentOf(profile, transforms, setting));
      counter.expect(caches.length * (shape.continuationTokens + shape.copyTokens) * (1 + sized.length));
      const scores = sized.map((): DocumentScores[] => []);
      for (const { document, state } of caches) {
        await runDocument(document, treatments, {
          context,
          state,
          shape,
          reference,
          signal,
          onDecoded: counter.add,
          onResult: (treatment, result) => {
            scores[treatments.indexOf(treatment)]?.push(result);
            return Promise.resolve();
          },
        });
      }
      return sized.map((setting, i) => ({ ...setting, ...lossOf(scores[i] ?? []) }));
    };
    const { tried, chosen } = await searchSettings(start, profile.predictor === null ? [] : EXPONENTS, measure);
    const record: TuningRecord = {
      ratio: point.ratio,
      weights,
      prefixTokens: shape.prefixTokens,
      continuationTokens: shape.continuationTokens,
      copyTokens: shape.copyTokens,
      documents: documents.map(({ source, sha256, tokens }) => ({
        source: source.slice(0, 4096),
        sha256,
        tokens: tokens.length,
      })),
      candidates: tried.map(({ exponent, valueOffset, keyStepIndex, codedBytes: bytes, klNats, copyKlNats }) => ({
        exponent,
        valueOffset,
        keyStepIndex,
        codedBytes: bytes,
        klNats,
        copyKlNats,
      })),
      chosen,
    };
    const steps =
      chosen === 0 ? undefined : await stepsOf(profile, coefficients, tried[chosen] as TunedSetting, signal);
    throwIfAborted(signal);
    // What was measured with other steps says nothing of these.
    await rewriteProfile(profilePath, { tuning: record, ...(steps === undefined ? {} : { steps, quality: [] }) });
    return {
      record,
      changed: chosen !== 0,
      droppedQuality: chosen === 0 ? 0 : profile.quality.length,
      steps: steps ?? profile.steps,
      elapsedMs: performance.now() - startedMs,
    };
  } finally {
    for (const close of closers.toReversed()) await close();
  }
}

function settingsOf(options: TuneOptions) {
  const defaults = TUNE_DEFAULTS;
  const { documents = defaults.documents, ratio = defaults.ratio } = options;
  if (!Number.isSafeInteger(documents) || documents < 0 || !(ratio > 0)) {
    const message = `tuning takes a number of documents and a ratio above 0; got ${documents} and ${ratio}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { documents, ratio });
  }
  const prefixTokens = options.prefixTokens ?? defaults.prefixTokens;
  const shape: ProtocolShape = {
    prefixTokens,
    continuationTokens: options.continuationTokens ?? defaults.continuationTokens,
    copyTokens: Math.min(defaults.copyTokens, prefixTokens - Math.floor(prefixTokens / 3)),
    sliceTokens: SLICE_TOKENS,
  };
  return { documents, ratio, weights: options.weights ?? defaults.weights, shape };
}

interface PrefixWorld {
  readonly context: ProtocolContext;
  readonly transforms: Transforms;
  readonly shape: ProtocolShape;
  readonly counter: TokenCounter;
  readonly signal: AbortSignal | undefined;
}

async function runPrefixes(documents: readonly EvaluationDocument[], world: PrefixWorld): Promise<TuningCache[]> {
  const { context, transforms, shape, counter, signal } = world;
  counter.expect(documents.length * shape.prefixTokens);
  const caches: TuningCache[] = [];
  for (const document of documents) {
    context.clear();
    const tokens = document.tokens.subarray(0, shape.prefixTokens);
    await prefill(tokens, { context, onDecoded: counter.add, signal });
    const state = context.getState();
    caches.push({ document, state, coefficients: await cachedCoefficients(state, tokens, transforms, signal) });
  }
  return caches;
}

/** The profile's point whose ratio is nearest, by its logarithm. */
function nearestPoint({ steps }: WtcProfile, ratio: number): StepPoint {
  const distance = (point: StepPoint): number => Math.abs(Math.log(point.ratio / ratio));
  return steps.reduce((best, point) => (distance(point) < distance(best) ? point : best));
}

function treatmentOf(profile: WtcProfile, transforms: Transforms, setting: SizedSetting): Treatment {
  const { exponent, valueOffset, keyStepIndex } = setting;
  const own = { ...transforms, profile: profileWith(profile, setting, keyStepIndex) };
  return kvtcTreatment(own, { step: stepOf(keyStepIndex) }, `exponent ${exponent} values ${valueOffset}`);
}

interface DocumentScores {
  readonly continuation: Scores;
  readonly copy: Scores;
}

function lossOf(documents: readonly DocumentScores[]): TunedLoss {
  const losses = (parts: readonly DocumentScores[]) => ({
    klNats: meanScores(addScores(...parts.map(({ continuation }) => continuation))).klNats,
    copyKlNats: meanScores(addScores(...parts.map(({ copy }) => copy))).klNats,
  });
  return { ...losses(documents), byDocument: documents.map((document) => losses([document])) };
}

/** The table of steps of a setting, measured on the documents' own rows. */
async function stepsOf(
  profile: WtcProfile,
  caches: readonly CachedCoefficients[],
  { exponent, valueOffset }: TunedSetting,
  signal: AbortSignal | undefined,
): Promise<StepPoint[]> {
  const { model, rank } = profile;
  const { geometry } = model;
  const join = (stream: StreamKind): Float32Array => {
    const out = new Float32Array(caches.reduce((sum, cache) => sum + cache[stream].length, 0));
    let at = 0;
    for (const cache of caches) {
      out.set(cache[stream], at);
      at += cache[stream].length;
    }
    return out;
  };
  const coded = { key: join('key'), value: join('value') };
  for (const stream of STREAMS) {
    let at = 0;
    for (const { means, firstToken, tokens } of caches) {
      const own = coded[stream].subarray(at, (at += tokens * rank[stream]));
      const range = { startToken: firstToken, endToken: firstToken + tokens };
      await means?.add(stream, range, own, { rank: rank[stream], components: rank[stream] }, -1);
    }
  }
  return measureSteps({
    tables: profile.tables,
    widths: { key: streamWidth(geometry, 'key'), value: streamWidth(geometry, 'value') },
    coefficients: coded,
    predicting: {
      tokens: caches.reduce((sum, { tokens }) => sum + tokens, 0),
      key: join('key'),
      value: join('value'),
    },
    valueOffset,
    predictor: exponent > 0 ? profile.predictor : null,
    exponent,
    signal,
  });
}

interface TokenCounter {
  readonly expect: (tokens: number) => void;
  readonly add: (tokens: number) => void;
}

/** Progress of decoded tokens; how many there will be is known round by round. */
function tokenCounter(onEvent: RunOptions['onEvent']): TokenCounter {
  let done = 0;
  let total = 0;
  return {
    expect: (tokens) => {
      total += tokens;
      onEvent?.({ type: 'progress', phase: 'tune', done, total, unit: 'tokens' });
    },
    add: (tokens) => {
      done += tokens;
      onEvent?.({ type: 'progress', phase: 'tune', done, total, unit: 'tokens' });
    },
  };
}
