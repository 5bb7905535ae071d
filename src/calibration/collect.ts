// The collecting half of a calibration: rows of every fitting document → moments of both streams, kept in a work
// directory so that an interrupted run goes on where it was and partial runs can be merged.
// Does not know: engines (rows come through a function), how a basis is fitted.

import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import type { Backend } from '../linalg/backend.ts';
import type { Moments, MomentsFrame } from './moments.ts';
import { accumulateMoments, createMoments, fitMomentsFrame, mergeMoments } from './moments.ts';
import { loadMoments, saveMoments } from './moments-file.ts';
import type { TokenDocument } from './sample.ts';

/** One document's rows with RoPE undone and sinks left out. */
export interface DocumentRows {
  readonly rowCount: number;
  /** f32[rowCount, p], or wider where something is collected beside the rows */
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** Runs a document through the model and gives its rows. */
export type RowSource = (document: TokenDocument, options: RunOptions) => Promise<DocumentRows>;

export interface CollectOptions extends RunOptions {
  readonly documents: readonly TokenDocument[];
  readonly rows: RowSource;
  /** Values of a row. */
  readonly widths: Readonly<Record<StreamKind, number>>;
  /** Names model, sample and settings: work of another key is refused. */
  readonly key: string;
  readonly backend: Backend;
  readonly workDirectory: string;
  /** Work on the share `index` of `count` only, for partial runs on several machines. */
  readonly part?: { readonly index: number; readonly count: number } | undefined;
  /** Work directories of partial runs to add; their documents are not run again. */
  readonly parts?: readonly string[] | undefined;
}

export interface Collected {
  readonly moments: Readonly<Record<StreamKind, Moments>>;
  /** Indices of the documents in the moments, ascending. */
  readonly done: readonly number[];
}

/** At most this much work is lost by a crash; an abort loses only the document in hand. */
const CHECKPOINT_MS = 60_000;
const PROGRESS_FILE = 'progress.json';

const progressSchema = z.strictObject({
  key: z.string(),
  generation: z.int().min(0),
  done: z.array(z.int().min(0)),
});
type Progress = z.infer<typeof progressSchema>;

/**
 * Collects moments over the documents (of the given part), resuming what the work directory holds. The first document
 * of the whole sample fixes the moments' frame, in every part, so that parts add up to the bits of a single run.
 * On abort the finished documents are saved before KVTC_ABORTED is thrown.
 * Throws KVTC_MOMENTS_MISMATCH when the work directory belongs to another calibration, KVTC_ROWS_NOT_FINITE.
 */
export async function collectMoments(options: CollectOptions): Promise<Collected> {
  const { documents, workDirectory, signal, onEvent } = options;
  await mkdir(workDirectory, { recursive: true });
  const part = options.part ?? { index: 0, count: 1 };
  const wanted = documents.map((_, i) => i).filter((i) => i % part.count === part.index);
  const resumed = await loadCollected(workDirectory, options.key);
  let generation = resumed?.generation ?? 0;
  let moments = resumed?.moments ?? null;
  const done = new Set(resumed?.done ?? []);
  let savedDone = done.size;
  for (const directory of options.parts ?? []) {
    const part = await loadPart(directory, options.key, done);
    if (part === null) continue;
    if (moments === null) ({ moments } = part);
    else for (const stream of STREAMS) mergeMoments(moments[stream], part.moments[stream]);
    for (const index of part.done) done.add(index);
  }
  let savedAtMs = performance.now();
  const save = async (): Promise<void> => {
    if (moments === null || done.size === savedDone) return;
    generation++;
    await saveCollected(workDirectory, { key: options.key, generation, done: sortedIndices(done) }, moments);
    savedDone = done.size;
    savedAtMs = performance.now();
  };
  const totalTokens = wanted.reduce((sum, i) => sum + (documents[i]?.tokens.length ?? 0), 0);
  const report = (): void => {
    const doneTokens = wanted.reduce((sum, i) => sum + (done.has(i) ? (documents[i]?.tokens.length ?? 0) : 0), 0);
    onEvent?.({ type: 'progress', phase: 'moments', done: doneTokens, total: totalTokens, unit: 'tokens' });
  };
  report();
  try {
    for (const index of wanted) {
      if (done.has(index)) continue;
      throwIfAborted(signal);
      if (moments === null) {
        const first = await options.rows(documents[0] as TokenDocument, options);
        moments = newMoments(first, options);
        if (index === 0) {
          await addRows(moments, first, options);
          done.add(index);
          report();
          continue;
        }
      }
      const rows = await options.rows(documents[index] as TokenDocument, options);
      await addRows(moments, rows, options);
      done.add(index);
      report();
      if (performance.now() - savedAtMs > CHECKPOINT_MS) await save();
    }
  } finally {
    await save();
  }
  if (moments === null) {
    throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', 'the sample holds no documents for this part', {
      part: part.index,
    });
  }
  return { moments, done: sortedIndices(done) };
}

/**
 * A partial run's work, or null when all of it is in `done` already (an earlier call merged it). Throws
 * KVTC_FILE_NOT_FOUND, and KVTC_MOMENTS_MISMATCH when only some of its documents are in.
 */
async function loadPart(directory: string, key: string, done: ReadonlySet<number>): ReturnType<typeof loadCollected> {
  const part = await loadCollected(directory, key);
  if (part === null) {
    throw new KvtcError(
      'KVTC_FILE_NOT_FOUND',
      `${directory} holds no collected calibration (${PROGRESS_FILE} is missing)`,
      { directory },
    );
  }
  const twice = part.done.filter((index) => done.has(index));
  if (twice.length === 0) return part;
  if (twice.length === part.done.length) return null;
  throw new KvtcError(
    'KVTC_MOMENTS_MISMATCH',
    `documents ${twice.slice(0, 5).join(', ')} are in ${directory} and were collected before`,
    { directory, documents: twice.length },
  );
}

function newMoments(rows: DocumentRows, { widths, key }: CollectOptions): Record<StreamKind, Moments> {
  const frame = (stream: StreamKind): MomentsFrame =>
    fitMomentsFrame(rows[stream], rows.rowCount, widths[stream], `${key} ${stream}`);
  return { key: createMoments(frame('key')), value: createMoments(frame('value')) };
}

async function addRows(
  moments: Record<StreamKind, Moments>,
  rows: DocumentRows,
  { backend }: CollectOptions,
): Promise<void> {
  // Not abortable half way: a document is in both streams' moments or in neither.
  for (const stream of STREAMS) await accumulateMoments(moments[stream], rows[stream], rows.rowCount, { backend });
}

function generationDirectory(workDirectory: string, generation: number): string {
  return join(workDirectory, `moments-${generation}`);
}

/** Both moments go to a fresh directory; the progress file names it only when they are whole. */
async function saveCollected(
  workDirectory: string,
  progress: Progress,
  moments: Readonly<Record<StreamKind, Moments>>,
): Promise<void> {
  const directory = generationDirectory(workDirectory, progress.generation);
  await mkdir(directory, { recursive: true });
  for (const stream of STREAMS) await saveMoments(join(directory, `${stream}.moments`), moments[stream]);
  const text = Buffer.from(`${JSON.stringify(progress)}\n`);
  await replaceFile(join(workDirectory, PROGRESS_FILE), (file) => writeFully(file, text, 0));
  await rm(generationDirectory(workDirectory, progress.generation - 1), { recursive: true, force: true });
}

async function loadCollected(
  workDirectory: string,
  key: string,
): Promise<{
  readonly moments: Record<StreamKind, Moments>;
  readonly done: readonly number[];
  readonly generation: number;
} | null> {
  let text: string;
  try {
    text = await readFile(join(workDirectory, PROGRESS_FILE), 'utf8');
  } catch {
    return null;
  }
  let progress: Progress;
  try {
    progress = progressSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new KvtcError(
      'KVTC_MOMENTS_MALFORMED',
      `${join(workDirectory, PROGRESS_FILE)} is not understood`,
      { workDirectory },
      { cause },
    );
  }
  if (progress.key !== key) {
    throw new KvtcError(
      'KVTC_MOMENTS_MISMATCH',
      `${workDirectory} holds the work of another calibration (other model, texts or settings); finish that one or delete the directory`,
      { workDirectory, gotKey: progress.key, expectedKey: key },
    );
  }
  const directory = generationDirectory(workDirectory, progress.generation);
  const load = (stream: StreamKind): Promise<Moments> =>
    loadMoments(join(directory, `${stream}.moments`), `${key} ${stream}`);
  return {
    moments: { key: await load('key'), value: await load('value') },
    done: progress.done,
    generation: progress.generation,
  };
}

function sortedIndices(indices: ReadonlySet<number>): number[] {
  return [...indices].toSorted((a, b) => a - b);
}
