// The protocol of an evaluation: one prefix, its exact cache, and what follows from it and from every treated cache,
// in calls of the same shapes. Does not know: profiles, files of texts, how results are averaged.
// Source: evidence protocol (docs/architecture.md, evaluation): KL of a teacher-forced continuation and of a copy probe.

import { invariant } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { LlamaContext } from '../engines/llama/session.ts';
import type { EvaluationDocument } from './documents.ts';
import type { ReferenceRows, Scores } from './metrics.ts';
import { NO_SCORES, addScores, createReferenceRows, recordExact, scoreAgainst } from './metrics.ts';
import type { DocumentResult } from './run-file.ts';
import type { Treatment } from './treatment.ts';

/** What the protocol asks of an engine. */
export type ProtocolContext = Pick<LlamaContext, 'clear' | 'decode' | 'logits' | 'getState' | 'setState' | 'truncate'>;

export interface ProtocolShape {
  /** Tokens whose cache is treated. */
  readonly prefixTokens: number;
  /** Tokens that are predicted after it. */
  readonly continuationTokens: number;
  /** Tokens of the copy probe: a passage from the first third of the prefix on, repeated after it. */
  readonly copyTokens: number;
  /** Tokens of one scored call at most; the engine's kernels change below 64, so shapes must not vary between runs. */
  readonly sliceTokens: number;
}

/** Rows of the copy probe that are not scored: nothing says yet which passage is being copied. */
const COPY_SKIPPED_ROWS = 8;

/** Memory for the exact distributions of one document: 4 · (continuation + copy) · vocabulary bytes. */
export function createReference(shape: ProtocolShape, vocabulary: number): ReferenceRows {
  return createReferenceRows(shape.continuationTokens + shape.copyTokens, vocabulary);
}

/** Tokens the engine decodes for a document with so many treatments: what progress counts. */
export function decodedTokens(shape: ProtocolShape, treatments: number): number {
  return shape.prefixTokens + (shape.continuationTokens + shape.copyTokens) * (1 + treatments);
}

export interface DocumentRun {
  readonly context: ProtocolContext;
  readonly shape: ProtocolShape;
  /** From createReference; overwritten. */
  readonly reference: ReferenceRows;
  /** Called after each treatment, before the next. */
  readonly onResult: (treatment: Treatment, result: DocumentResult) => Promise<void>;
  readonly onDecoded: (tokens: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs one document through the exact cache and every treatment. The context must have room for prefix and continuation
 * (or copy probe) and hold nothing that is still needed. Memory: the state twice, the reference, one slice of logits.
 * Throws what the engine and the treatments throw, KVTC_ABORTED between two calls.
 */
export async function runDocument(
  document: EvaluationDocument,
  treatments: readonly Treatment[],
  run: DocumentRun,
): Promise<void> {
  const { context, shape, signal } = run;
  const { prefixTokens, continuationTokens, copyTokens } = shape;
  invariant(document.tokens.length === prefixTokens + continuationTokens, 'a document has the length of the shape');
  const prefix = document.tokens.subarray(0, prefixTokens);
  const copyStart = Math.floor(prefixTokens / 3);
  const parts = {
    continuation: { tokens: document.tokens.subarray(prefixTokens), firstRow: 0, skippedRows: 0 },
    copy: {
      tokens: prefix.subarray(copyStart, copyStart + copyTokens),
      firstRow: continuationTokens,
      skippedRows: continuationTokens + COPY_SKIPPED_ROWS,
    },
  };
  const bothParts = async (score: typeof scoreAgainst): Promise<Record<keyof typeof parts, Scores>> => {
    const continuation = await scorePart(run, parts.continuation, score);
    context.truncate(0, prefixTokens);
    const copy = await scorePart(run, parts.copy, score);
    return { continuation, copy };
  };

  throwIfAborted(signal);
  const prefillStart = performance.now();
  context.clear();
  let prefilled = 0;
  const prefilledTo = (tokens: number): void => {
    run.onDecoded(tokens - prefilled);
    prefilled = tokens;
  };
  await context.decode(prefix, {
    logits: 'none',
    signal,
    onEvent: (event) => {
      if (event.type === 'progress') prefilledTo(event.done);
    },
  });
  const prefillMs = performance.now() - prefillStart;
  prefilledTo(prefixTokens);
  const state = context.getState();
  const exact = await bothParts(recordExact);

  for (const treatment of treatments) {
    throwIfAborted(signal);
    const treated = await treatment.apply(state, prefix, { signal });
    const continueStart = performance.now();
    context.clear();
    context.setState(treated.state);
    const scores = await bothParts(scoreAgainst);
    await run.onResult(treatment, {
      kind: document.kind,
      source: document.source,
      continuation: scores.continuation,
      continuationExact: exact.continuation,
      copy: scores.copy,
      copyExact: exact.copy,
      paperRatio: treated.paperRatio,
      effectiveRatio: treated.effectiveRatio,
      storedBytes: treated.storedBytes,
      prefillMs,
      compressMs: treated.compressMs,
      restoreMs: treated.restoreMs,
      continueMs: performance.now() - continueStart,
    });
  }
}

/** Decodes a part in calls of equal length (one shorter by a token at most) and scores every call's logits at once. */
async function scorePart(
  run: DocumentRun,
  part: { readonly tokens: Int32Array; readonly firstRow: number; readonly skippedRows: number },
  score: typeof scoreAgainst,
): Promise<Scores> {
  const { context, reference, signal } = run;
  const { tokens } = part;
  const calls = Math.ceil(tokens.length / run.shape.sliceTokens);
  let sums = NO_SCORES;
  for (let call = 0; call < calls; call++) {
    throwIfAborted(signal);
    const start = Math.floor((tokens.length * call) / calls);
    const end = Math.floor((tokens.length * (call + 1)) / calls);
    await context.decode(tokens.subarray(start, end), { logits: 'all', signal });
    const logits = context.logits(end - start);
    const targets = new Int32Array(end - start).fill(-1);
    targets.set(tokens.subarray(start + 1, end + 1));
    sums = addScores(
      sums,
      score(reference, { logits, firstRow: part.firstRow + start, skippedRows: part.skippedRows, targets }),
    );
    run.onDecoded(end - start);
  }
  return sums;
}
