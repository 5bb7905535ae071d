// Runs documents × treatments through one context, skips what a run file already holds, and tells how far it is.
// Does not know: profiles, where documents and treatments come from, what is made of the results.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { EvaluationDocument } from './documents.ts';
import type { ProtocolContext, ProtocolShape } from './protocol.ts';
import { createReference, decodedTokens, runDocument } from './protocol.ts';
import type { DocumentResult, ResultKey, RunFile } from './run-file.ts';
import type { Treatment } from './treatment.ts';

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
export interface Measured {
  readonly treatment: Treatment;
  readonly results: readonly DocumentResult[];
}

/** Bytes of exact distributions kept for one document at most. */
const REFERENCE_LIMIT_BYTES = 2 ** 31;

/**
 * Measures every treatment on its documents. Documents come one after the other, so that a prefix is prefilled once;
 * what the run file holds is not measured again, and a document with nothing left to measure is not prefilled.
 * Progress counts decoded tokens of what is left to do. Throws KVTC_OPTION_INVALID for settings that do not fit each
 * other, and what runDocument throws.
 */
export async function measureTreatments(options: MeasureOptions): Promise<Measured[]> {
  const { context, vocabulary, documents, plan, shape, runFile, onEvent, signal } = options;
  checkShape(shape, vocabulary);
  const labels = new Set(plan.map(({ treatment }) => treatment.label));
  if (labels.size < plan.length) {
    throw new KvtcError('KVTC_OPTION_INVALID', 'two treatments of the evaluation have the same name', {
      treatments: plan.map(({ treatment }) => treatment.label).join(', '),
    });
  }
  const keyOf = (document: EvaluationDocument, treatment: Treatment): ResultKey => ({
    model: options.model,
    weights: options.weights,
    treatment: `${treatment.label} ${JSON.stringify(treatment.settings)}`,
    document: document.sha256,
    ...shape,
  });
  const wanted = (index: number): Treatment[] =>
    plan.filter((planned) => index < planned.documents).map(({ treatment }) => treatment);
  const pending = documents.map((document, index) =>
    wanted(index).filter((treatment) => runFile.find(keyOf(document, treatment)) === undefined),
  );
  const total = pending.reduce((sum, { length }) => sum + (length === 0 ? 0 : decodedTokens(shape, length)), 0);
  const reference = createReference(
    total === 0 ? { ...shape, continuationTokens: 0, copyTokens: 0 } : shape,
    vocabulary,
  );
  let done = 0;
  onEvent?.({ type: 'progress', phase: 'evaluate', done, total, unit: 'tokens' });
  for (const [index, document] of documents.entries()) {
    const treatments = pending[index] ?? [];
    if (treatments.length === 0) continue;
    await runDocument(document, treatments, {
      context,
      shape,
      reference,
      signal,
      onDecoded: (tokens) => {
        done += tokens;
        onEvent?.({ type: 'progress', phase: 'evaluate', done, total, unit: 'tokens' });
      },
      onResult: (treatment, result) => runFile.add(keyOf(document, treatment), result),
    });
  }
  return plan.map((planned) => ({
    treatment: planned.treatment,
    results: documents
      .slice(0, planned.documents)
      .map((document) => runFile.find(keyOf(document, planned.treatment)))
      .filter((result) => result !== undefined),
  }));
}

function checkShape(shape: ProtocolShape, vocabulary: number): void {
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
