// The protocol of an evaluation: one prefix, its exact cache, and what follows from it and from every treated cache,
// in calls of the same shapes. Does not know: profiles, files of texts, how results are averaged.
// Source: evidence protocol (docs/architecture.md, evaluation): KL of a teacher-forced continuation and of a copy probe.

import { createHash } from 'node:crypto';
import { invariant } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { EvaluationDocument } from './documents.ts';
import type { ReferenceRows, Scores } from './metrics.ts';
import { NO_SCORES, addScores, createReferenceRows, recordExact, scoreAgainst } from './metrics.ts';
import type { CacheCosts, DocumentResult } from './run-file.ts';
import type { ProtocolContext, Treatment } from './treatment.ts';

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

/** Tokens the engine decodes for a document with so many treatments, `prefills` of them prefilling: what progress counts. */
export function decodedTokens(shape: ProtocolShape, treatments: number, prefills = 0): number {
  const { prefixTokens, continuationTokens, copyTokens } = shape;
  return prefixTokens * (1 + prefills) + (continuationTokens + copyTokens) * (1 + treatments);
}

/** What runs from one prefix need, whatever is scored after it. */
export interface PrefixRun {
  readonly context: ProtocolContext;
  /** The prefix's exact cache, where it is at hand: nothing is prefilled then, and prefill is said to take no time. */
  readonly state?: Uint8Array | undefined;
  readonly onDecoded: (tokens: number) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface DocumentRun extends PrefixRun {
  readonly shape: ProtocolShape;
  /** From createReference; overwritten. */
  readonly reference: ReferenceRows;
  /** Called after each treatment, before the next. */
  readonly onResult: (treatment: Treatment, result: DocumentResult) => Promise<void>;
}

/** One scoring: from `context`, which holds exactly the prefix, with each slice of logits handed to `by`. */
export interface ScoreCall {
  readonly context: ProtocolContext;
  readonly by: typeof scoreAgainst;
  readonly onDecoded: (tokens: number) => void;
}

/** What a treated cache led to, and what it cost. */
export interface PrefixOutcome<Scored> {
  readonly exact: Scored;
  readonly treated: Scored;
  readonly costs: CacheCosts;
}

/**
 * Prefills a prefix once, unless its state is given, and scores what follows from its exact cache, then from every treated
 * cache, in the same calls.
 * `score` decodes from a context that holds exactly the prefix and need not put it back. A treated state equal to an
 * earlier one, byte by byte, has that one's scores and is not decoded again: settings that only change what is stored
 * cost no engine time. Throws what the engine, `score` and the treatments throw, KVTC_ABORTED between two calls.
 */
export async function runPrefix<Scored>(
  prefix: Int32Array,
  treatments: readonly Treatment[],
  run: PrefixRun,
  score: (call: ScoreCall) => Promise<Scored>,
  onOutcome: (treatment: Treatment, outcome: PrefixOutcome<Scored>) => Promise<void>,
): Promise<void> {
  const { context, signal } = run;
  throwIfAborted(signal);
  let prefillMs = 0;
  context.clear();
  if (run.state === undefined) prefillMs = await prefill(prefix, run);
  else context.setState(run.state);
  const state = run.state ?? context.getState();
  const exact = await score({ context, by: recordExact, onDecoded: run.onDecoded });
  const seen = new Map<string, { treated: Scored; continueMs: number; decoded: number }>();
  for (const treatment of treatments) {
    throwIfAborted(signal);
    const applied = await treatment.apply(state, prefix, { signal, onDecoded: run.onDecoded });
    const { state: treatedState, context: own, ...costs } = applied;
    const digest = own === undefined ? createHash('sha256').update(treatedState).digest('hex') : treatment.label;
    let scored = seen.get(digest);
    if (scored === undefined) {
      const startedMs = performance.now();
      if (own === undefined) {
        context.clear();
        context.setState(treatedState);
      }
      let decoded = 0;
      const onDecoded = (tokens: number): void => {
        decoded += tokens;
        run.onDecoded(tokens);
      };
      const treated = await score({ context: own ?? context, by: scoreAgainst, onDecoded });
      scored = { treated, continueMs: performance.now() - startedMs, decoded };
      seen.set(digest, scored);
    } else {
      run.onDecoded(scored.decoded);
    }
    const { treated, continueMs } = scored;
    await onOutcome(treatment, { exact, treated, costs: { ...costs, prefillMs, continueMs } });
  }
}

/** Decodes a prefix into an empty context and tells of its tokens as they come. Returns the milliseconds it took. */
export async function prefill(prefix: Int32Array, { context, onDecoded, signal }: PrefixRun): Promise<number> {
  const startedMs = performance.now();
  let prefilled = 0;
  const prefilledTo = (tokens: number): void => {
    onDecoded(tokens - prefilled);
    prefilled = tokens;
  };
  await context.decode(prefix, {
    logits: 'none',
    signal,
    onEvent: (event) => {
      if (event.type === 'progress') prefilledTo(event.done);
    },
  });
  const elapsedMs = performance.now() - startedMs;
  prefilledTo(prefix.length);
  return elapsedMs;
}

/**
 * Runs one document through the exact cache and every treatment. The context must have room for prefix and continuation
 * (or copy probe) and hold nothing that is still needed. Memory: the state twice, the reference, one slice of logits.
 * Throws what runPrefix throws.
 */
export async function runDocument(
  document: EvaluationDocument,
  treatments: readonly Treatment[],
  run: DocumentRun,
): Promise<void> {
  const { shape } = run;
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
  await runPrefix(
    prefix,
    treatments,
    run,
    async (call) => {
      const continuation = await scorePart(run, call, parts.continuation);
      call.context.truncate(0, prefixTokens);
      const copy = await scorePart(run, call, parts.copy);
      return { continuation, copy };
    },
    (treatment, { exact, treated, costs }) =>
      run.onResult(treatment, {
        kind: document.kind,
        source: document.source,
        continuation: treated.continuation,
        continuationExact: exact.continuation,
        copy: treated.copy,
        copyExact: exact.copy,
        ...costs,
      }),
  );
}

/** Decodes a part in calls of equal length (one shorter by a token at most) and scores every call's logits at once. */
async function scorePart(
  run: DocumentRun,
  { context, by, onDecoded }: ScoreCall,
  part: { readonly tokens: Int32Array; readonly firstRow: number; readonly skippedRows: number },
): Promise<Scores> {
  const { reference, signal } = run;
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
      by(reference, { logits, firstRow: part.firstRow + start, skippedRows: part.skippedRows, targets }),
    );
    onDecoded(end - start);
  }
  return sums;
}
