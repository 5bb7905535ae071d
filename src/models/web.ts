// Downloads one file over HTTP(S): goes on where an interrupted transfer stopped, hashes on the way.
// Does not know: where the file belongs in the cache, what is in it.

import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { writeFailed } from '../base/atomic-file.ts';
import { KvtcError, isKvtcError } from '../base/errors.ts';
import { throwIfAborted, type RunOptions } from '../base/events.ts';

/** Attempts in a row that may fail without a byte of progress. */
const MAX_FRUITLESS_ATTEMPTS = 3;
const RETRY_MS = 500;

export interface Downloaded {
  readonly byteLength: number;
  /** hex */
  readonly sha256: string;
}

/** What the server called the bytes in the part file; without it a later run cannot know that they still belong together. */
interface ResumeNote {
  readonly url: string;
  readonly etag: string;
}

/**
 * Fetches `url` into `partPath`, keeping what is there from an earlier call when the server still has the same file
 * (strong ETag; asked with Range and If-Range). Broken transfers are taken up again by themselves.
 * On failure the part file stays for the next call. Progress counts bytes of the file.
 * Throws KVTC_DOWNLOAD_FAILED, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function downloadFile(url: string, partPath: string, options: RunOptions = {}): Promise<Downloaded> {
  let fruitless = 0;
  let bestBytes = 0;
  for (;;) {
    try {
      const done = await attempt(url, partPath, options);
      await rm(notePath(partPath), { force: true });
      return done;
    } catch (error) {
      throwIfAborted(options.signal);
      if (isKvtcError(error)) throw error;
      const bytes = await fileBytes(partPath);
      fruitless = bytes > bestBytes ? 1 : fruitless + 1;
      bestBytes = Math.max(bestBytes, bytes);
      const reason =
        error instanceof Error ? [error.message, causeMessage(error)].filter(Boolean).join(': ') : String(error);
      if (fruitless >= MAX_FRUITLESS_ATTEMPTS) {
        throw new KvtcError(
          'KVTC_DOWNLOAD_FAILED',
          `could not download ${url} (${reason}); ${bytes} bytes are kept, call again to go on`,
          { url, keptBytes: bytes },
          { cause: error },
        );
      }
      options.onEvent?.({
        type: 'warning',
        message: `download interrupted at ${bytes} bytes (${reason}), trying again`,
      });
      await sleep(RETRY_MS * fruitless, undefined, { ref: true });
    }
  }
}

async function attempt(url: string, partPath: string, options: RunOptions): Promise<Downloaded> {
  const { signal } = options;
  const note = await readNote(partPath);
  let startBytes = note?.url === url ? await fileBytes(partPath) : 0;
  const headers: Record<string, string> = { 'accept-encoding': 'identity' };
  if (note !== null && startBytes > 0) {
    headers['range'] = `bytes=${startBytes}-`;
    headers['if-range'] = note.etag;
  }
  const response = await fetch(url, { headers, redirect: 'follow', ...(signal === undefined ? {} : { signal }) });
  if (response.status === 416) {
    await rm(partPath, { force: true });
    throw new Error('the server cannot go on from here');
  }
  if (response.status >= 500) throw new Error(`the server answered ${response.status}`);
  if (response.status !== 200 && response.status !== 206) {
    const message = `could not download ${url}: the server answered ${response.status} ${response.statusText}; check the address`;
    throw new KvtcError('KVTC_DOWNLOAD_FAILED', message, { url, status: response.status });
  }
  if (response.status === 206) {
    const range = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '');
    if (Number(range?.[1]) !== startBytes) {
      await rm(partPath, { force: true });
      throw new Error('the server sent another range than asked for');
    }
  } else {
    startBytes = 0;
  }
  const announced = response.headers.get('content-length');
  const totalBytes = announced === null ? null : startBytes + Number(announced);
  const etag = response.headers.get('etag');
  if (etag !== null && !etag.startsWith('W/')) await writeNote(partPath, { url, etag });
  else await rm(notePath(partPath), { force: true });
  const hash = createHash('sha256');
  if (startBytes > 0) await hashFile(partPath, hash);
  const byteLength = await appendBody(response, partPath, { startBytes, totalBytes, hash, options });
  if (totalBytes !== null && byteLength !== totalBytes) throw new Error(`got ${byteLength} of ${totalBytes} bytes`);
  return { byteLength, sha256: hash.digest('hex') };
}

interface BodyTarget {
  readonly startBytes: number;
  readonly totalBytes: number | null;
  readonly hash: Hash;
  readonly options: RunOptions;
}

async function appendBody(response: Response, partPath: string, target: BodyTarget): Promise<number> {
  const { hash, options } = target;
  let byteLength = target.startBytes;
  const file = await open(partPath, byteLength === 0 ? 'w' : 'a').catch((error: unknown) => {
    throw writeFailed(partPath, error);
  });
  try {
    if (response.body === null) return byteLength;
    for await (const piece of response.body as AsyncIterable<Uint8Array>) {
      throwIfAborted(options.signal);
      await file.writeFile(piece).catch((error: unknown) => {
        throw writeFailed(partPath, error);
      });
      hash.update(piece);
      byteLength += piece.length;
      const total = target.totalBytes ?? byteLength;
      options.onEvent?.({ type: 'progress', phase: 'download', done: byteLength, total, unit: 'bytes' });
    }
    await file.sync();
    return byteLength;
  } finally {
    await file.close();
  }
}

/** sha256, hex, of a file. Throws KVTC_FILE_NOT_FOUND. */
export async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  await hashFile(path, hash).catch((error: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read ${path}`, { path }, { cause: error });
  });
  return hash.digest('hex');
}

async function hashFile(path: string, hash: Hash): Promise<void> {
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(piece as Uint8Array);
}

function notePath(partPath: string): string {
  return `${partPath}.json`;
}

async function readNote(partPath: string): Promise<ResumeNote | null> {
  try {
    const note = JSON.parse(await readFile(notePath(partPath), 'utf8')) as Partial<ResumeNote> | null;
    return typeof note?.url === 'string' && typeof note.etag === 'string' ? { url: note.url, etag: note.etag } : null;
  } catch {
    return null;
  }
}

async function writeNote(partPath: string, note: ResumeNote): Promise<void> {
  await writeFile(notePath(partPath), JSON.stringify(note)).catch((error: unknown) => {
    throw writeFailed(notePath(partPath), error);
  });
}

async function fileBytes(path: string): Promise<number> {
  return stat(path).then(
    (found) => found.size,
    () => 0,
  );
}

function causeMessage(error: Error): string {
  return error.cause instanceof Error ? error.cause.message : '';
}
