// Writing a file so that readers only ever see it whole: a partial file beside it, synced, then renamed over it.
// Does not know what is written.

import type { FileHandle } from 'node:fs/promises';
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { KvtcError, isKvtcError } from './errors.ts';

/**
 * Calls `write` with a handle on `path + '.part'`, syncs it and renames it to `path`. When anything fails the partial
 * file is removed and `path` is as before. Throws what `write` throws if that is a KvtcError, else KVTC_WRITE_FAILED.
 */
export async function replaceFile(path: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
  const partial = `${path}.part`;
  try {
    const file = await open(partial, 'w');
    try {
      await write(file);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(partial, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(partial, { force: true }).catch(() => undefined);
    if (isKvtcError(error)) throw error;
    throw writeFailed(path, error);
  }
}

/** KVTC_WRITE_FAILED for a path, from whatever the system threw. */
export function writeFailed(path: string, cause: unknown): KvtcError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new KvtcError('KVTC_WRITE_FAILED', `cannot write ${path}: ${reason}`, { path }, { cause });
}

/** Writes all of `bytes` at `offsetBytes`. */
export async function writeFully(file: FileHandle, bytes: Uint8Array, offsetBytes: number): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offsetBytes + done);
    done += bytesWritten;
  }
}

/** Makes the rename itself durable. Not every platform lets a directory be opened; the data is safe either way. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r').catch(() => null);
  try {
    await directory?.sync().catch(() => undefined);
  } finally {
    await directory?.close();
  }
}
