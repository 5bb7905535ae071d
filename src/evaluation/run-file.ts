// Results of an evaluation as they come, one JSON object a line, so that an interrupted run goes on where it stopped.
// Does not know: what a result means, how it is measured.

import { open, readFile } from 'node:fs/promises';
import { z } from 'zod';
import { writeFailed } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';

const scores = z.object({
  rows: z.number(),
  klSum: z.number(),
  agreements: z.number(),
  targets: z.number(),
  lossSum: z.number(),
  hits: z.number(),
});

/** Everything that a result depends on. Two results with equal keys are the same measurement. */
const resultKey = z.strictObject({
  /** Fingerprint of the model's file as published, whatever copy of it ran. */
  model: z.string(),
  weights: z.string(),
  /** Names the treatment and all its settings, and the profile it codes with. */
  treatment: z.string(),
  /** sha256, hex, of the document's tokens. */
  document: z.string(),
  prefixTokens: z.number(),
  continuationTokens: z.number(),
  copyTokens: z.number(),
  sliceTokens: z.number(),
});

/** What a treatment stores of a prefix and how long everything took. */
const costs = z.object({
  paperRatio: z.number().nullable(),
  effectiveRatio: z.number().nullable(),
  storedBytes: z.number().nullable(),
  prefillMs: z.number(),
  compressMs: z.number(),
  restoreMs: z.number(),
  continueMs: z.number(),
});

const documentResult = costs.extend({
  kind: z.string(),
  source: z.string(),
  /** Continuation, and copy probe; of the run from the treated cache and of the exact run. */
  continuation: scores,
  continuationExact: scores,
  copy: scores,
  copyExact: scores,
});

/** One question put to a cache; scores are over the tokens of its answer, or of all its choices. */
const questionResult = z.object({
  /** Where in the prefix the answer stands, 0 to 1; null where it has no one place. */
  depth: z.number().nullable(),
  /** Every token of the answer is the most likely one, or the right choice the likeliest. */
  correct: z.boolean(),
  correctExact: z.boolean(),
  /** Tokens of the answer before the first that is not the most likely one. */
  leadingTokens: z.number(),
  answerTokens: z.number(),
  scores,
  exact: scores,
});

const taskResult = costs.extend({
  kind: z.string(),
  source: z.string(),
  prefixTokens: z.number(),
  /** What the item was built to; the grid of a needle test counts in these. */
  lengthTokens: z.number(),
  questions: z.array(questionResult),
});

const runLine = z.object({ key: resultKey, result: z.union([documentResult, taskResult]) });

export type ResultKey = z.infer<typeof resultKey>;
export type CacheCosts = Readonly<z.infer<typeof costs>>;
/** What one treatment did to one document. */
export type DocumentResult = Readonly<z.infer<typeof documentResult>>;
export type QuestionResult = Readonly<z.infer<typeof questionResult>>;
/** What one treatment did to one task item. */
export type TaskResult = Readonly<z.infer<typeof taskResult>>;
/** Keys tell documents from task items: these have no continuation. */
export type RunResult = DocumentResult | TaskResult;

/** Finished results by key, and a place to add more. Close it. */
export interface RunFile {
  find(key: ResultKey): RunResult | undefined;
  /** Appends and syncs one line: once this resolves, the result survives a kill. */
  add(key: ResultKey, result: RunResult): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens a run file, created when missing; with null, results are kept in memory alone. A last line cut short by an
 * interruption is dropped. Throws KVTC_RUN_MALFORMED when another line is no result, KVTC_WRITE_FAILED.
 */
export async function openRunFile(path: string | null): Promise<RunFile> {
  const results = new Map<string, RunResult>();
  const name = (key: ResultKey): string => JSON.stringify(resultKey.parse(key));
  if (path === null) {
    return {
      find: (key) => results.get(name(key)),
      add: async (key, result) => void results.set(name(key), result),
      close: async () => undefined,
    };
  }
  try {
    const file = await open(path, 'a+');
    try {
      const text = await readFile(file, 'utf8');
      const whole = text.lastIndexOf('\n') + 1;
      for (const [index, line] of text.slice(0, whole).split('\n').slice(0, -1).entries()) {
        const { key, result } = parseLine(line, path, index + 1);
        results.set(name(key), result);
      }
      if (whole < text.length) await file.truncate(Buffer.byteLength(text.slice(0, whole)));
    } catch (error) {
      await file.close();
      throw error;
    }
    return {
      find: (key) => results.get(name(key)),
      add: async (key, result) => {
        results.set(name(key), result);
        try {
          await file.appendFile(`${JSON.stringify({ key, result })}\n`);
          await file.datasync();
        } catch (error) {
          throw writeFailed(path, error);
        }
      },
      close: () => file.close(),
    };
  } catch (error) {
    throw error instanceof KvtcError ? error : writeFailed(path, error);
  }
}

function parseLine(line: string, path: string, lineNumber: number): z.infer<typeof runLine> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw malformed(path, lineNumber, 'it is not JSON', error);
  }
  const parsed = runLine.safeParse(value);
  if (!parsed.success) throw malformed(path, lineNumber, z.prettifyError(parsed.error), parsed.error);
  return parsed.data;
}

function malformed(path: string, lineNumber: number, why: string, cause: unknown): KvtcError {
  return new KvtcError(
    'KVTC_RUN_MALFORMED',
    `line ${lineNumber} of ${path} is no evaluation result: ${why}; name another file, or delete that line`,
    { path, lineNumber },
    { cause },
  );
}
