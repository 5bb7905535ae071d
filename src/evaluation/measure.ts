// Runs documents × treatments through one context, skips what a run file already holds, and tells how far it is.
// Does not know: profiles, where documents and treatments come from, what is made of the results.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { EvaluationDocument } from './documents.ts';
import type { ReferenceRows } from './metrics.ts';
import type { PrefixRun, ProtocolShape } from './protocol.ts';
import { createReference, decodedTokens, runDocument } from './protocol.ts';
import type { TaskItem } from './tasks/item.ts';
import { createTaskReference, itemTokens, runTaskItem } from './tasks/run-item.ts';
import type { DocumentResult, ResultKey, RunFile, RunResult, TaskResult } from './run-file.ts';
import type { ProtocolContext, Treatment } from './treatment.ts';

/** A treatment and the documents it is measured on: all, or the first few. */
export interface PlannedTreatment {
  readonly treatment: Treatment;
  /** Documents from the first on. */
  readonly documents: number;
}

export interface MeasureOptions extends RunOptions {
  readonly context: ProtocolContext;
  /** Tokens of the model's vocabulary. */
  readonly vocabulary: number;
  readonly documents: readonly EvaluationDocument[];
  readonly plan: readonly PlannedTreatment[];
  readonly shape: ProtocolShape;
  /** Which model and which copy of its weights runs: part of every result's key. */
  readonly model: string;
  readonly weights: string;
  readonly runFile: RunFile;
}

/** Results of one treatment, in the order of the documents. */
export interface Measured<Result> {
  readonly treatment: Treatment;
  readonly results: readonly Result[];
}

/** One prefix and all that is measured from it. */
interface Work<Result extends RunResult> {
  /** sha256, hex, of everything that the results depend on and the key does not say otherwise. */
  readonly document: string;
  readonly shape: ProtocolShape;
  /** Tokens the engine decodes for these treatments. */
  decodedTokens(treatments: readonly Treatment[]): number;
  run(
    treatments: readonly Treatment[],
    hooks: Pick<PrefixRun, 'onDecoded' | 'signal'> & {
      readonly onResult: (treatment: Treatment, result: Result) => Promise<void>;
    },
  ): Promise<void>;
}

interface WorkOptions<Result extends RunResult> extends RunOptions {
  readonly work: readonly Work<Result>[];
  readonly plan: readonly PlannedTreatment[];
  /** Tells results of this kind from others that a run file may hold. */
  readonly isResult: (result: RunResult) => result is Result;
  /** Of the progress events. */
  readonly phase: string;
  readonly model: string;
  readonly weights: string;
  readonly runFile: RunFile;
}

/** Bytes of exact distributions kept for one document at most. */
const REFERENCE_LIMIT_BYTES = 2 ** 31;

/**
 * Measures every treatment on its documents. Documents come one after the other, so that a prefix is prefilled once;
 * what the run file holds is not measured again, and a document with nothing left to measure is not prefilled.
 * Progress counts decoded tokens of what is left to do. Throws KVTC_OPTION_INVALID for settings that do not fit each
 * other, and what runDocument throws.
 */
export async function measureTreatments(options: MeasureOptions): Promise<Measured<DocumentResult>[]> {
  const { context, vocabulary, documents, shape } = options;
  checkShape(shape, vocabulary);
  let reference: ReferenceRows | undefined;
  return measureWork({
    ...options,
    phase: 'evaluate',
    isResult: (result) => 'continuation' in result,
    work: documents.map((document) => ({
      document: document.sha256,
      shape,
      decodedTokens: (treatments) => decodedTokens(shape, treatments.length, countPrefills(treatments)),
      run: (treatments, hooks) => {
        reference ??= createReference(shape, vocabulary);
        return runDocument(document, treatments, { context, shape, reference, ...hooks });
      },
    })),
  });
}

/**
 * Puts the questions of task items to every treatment's caches, as `measureTreatments` measures documents. The context
 * must have room for the longest prefix with its question. Throws what runTaskItem throws.
 */
export async function measureTasks(
  options: Omit<MeasureOptions, 'documents' | 'shape'> & { readonly items: readonly TaskItem[] },
): Promise<Measured<TaskResult>[]> {
  const { context, items, vocabulary } = options;
  let reference: ReferenceRows | undefined;
  return measureWork({
    ...options,
    phase: 'tasks',
    isResult: (result) => 'questions' in result,
    work: items.map((item) => ({
      document: item.sha256,
      shape: { prefixTokens: item.prefix.length, continuationTokens: 0, copyTokens: 0, sliceTokens: 0 },
      decodedTokens: (treatments) => itemTokens(item, treatments.length, countPrefills(treatments)),
      run: (treatments, hooks) => {
        reference ??= createTaskReference(items, vocabulary);
        return runTaskItem(item, treatments, { context, reference, ...hooks });
      },
    })),
  });
}

/** Treatments that run the prefix through the engine themselves. */
function countPrefills(treatments: readonly Treatment[]): number {
  return treatments.filter(({ prefills }) => prefills === true).length;
}

/**
 * Runs work × treatments as `measureTreatments` does, whatever is scored. Throws KVTC_OPTION_INVALID when two treatments
 * have one name, and what the work throws.
 */
async function measureWork<Result extends RunResult>(options: WorkOptions<Result>): Promise<Measured<Result>[]> {
  const { work, plan, phase, runFile, onEvent, signal, isResult } = options;
  const labels = new Set(plan.map(({ treatment }) => treatment.label));
  if (labels.size < plan.length) {
    throw new KvtcError('KVTC_OPTION_INVALID', 'two treatments of the evaluation have the same name', {
      treatments: plan.map(({ treatment }) => treatment.label).join(', '),
    });
  }
  const keyOf = ({ document, shape }: Work<Result>, treatment: Treatment): ResultKey => ({
    model: options.model,
    weights: options.weights,
    treatment: `${treatment.label} ${JSON.stringify(treatment.settings)}`,
    document,
    ...shape,
  });
  const find = (item: Work<Result>, treatment: Treatment): Result | undefined => {
    const found = runFile.find(keyOf(item, treatment));
    return found !== undefined && isResult(found) ? found : undefined;
  };
  const pending = work.map((item, index) =>
    plan
      .filter((planned) => index < planned.documents)
      .map(({ treatment }) => treatment)
      .filter((treatment) => find(item, treatment) === undefined),
  );
  const total = work.reduce((sum, item, index) => {
    const treatments = pending[index] ?? [];
    return sum + (treatments.length === 0 ? 0 : item.decodedTokens(treatments));
  }, 0);
  let done = 0;
  onEvent?.({ type: 'progress', phase, done, total, unit: 'tokens' });
  for (const [index, item] of work.entries()) {
    const treatments = pending[index] ?? [];
    if (treatments.length === 0) continue;
    await item.run(treatments, {
      signal,
      onDecoded: (tokens) => {
        done += tokens;
        onEvent?.({ type: 'progress', phase, done, total, unit: 'tokens' });
      },
      onResult: (treatment, result) => runFile.add(keyOf(item, treatment), result),
    });
  }
  return plan.map((planned) => ({
    treatment: planned.treatment,
    results: work
      .slice(0, planned.documents)
      .map((item) => find(item, planned.treatment))
      .filter((result) => result !== undefined),
  }));
}

/** Throws KVTC_OPTION_INVALID for counts that do not fit each other, and references that memory should not be asked for. */
export function checkShape(shape: ProtocolShape, vocabulary: number): void {
  for (const [name, least] of [
    ['prefixTokens', 2],
    ['continuationTokens', 2],
    ['copyTokens', 10],
    ['sliceTokens', 1],
  ] as const) {
    if (!Number.isSafeInteger(shape[name]) || shape[name] < least) {
      const message = `${name} is ${shape[name]}; expected an integer of at least ${least}`;
      throw new KvtcError('KVTC_OPTION_INVALID', message, { option: name, got: shape[name] });
    }
  }
  const room = shape.prefixTokens - Math.floor(shape.prefixTokens / 3);
  if (shape.copyTokens > room) {
    const message = `a copy probe of ${shape.copyTokens} tokens does not fit in the last two thirds of a prefix of ${shape.prefixTokens}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'copyTokens', got: shape.copyTokens, limit: room });
  }
  const neededBytes = 4 * (shape.continuationTokens + shape.copyTokens) * vocabulary;
  if (neededBytes > REFERENCE_LIMIT_BYTES) {
    const message = `the exact distributions of ${shape.continuationTokens} + ${shape.copyTokens} tokens over ${vocabulary} take ${neededBytes} bytes, more than ${REFERENCE_LIMIT_BYTES}; evaluate fewer continuation tokens`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { neededBytes, limitBytes: REFERENCE_LIMIT_BYTES });
  }
}
