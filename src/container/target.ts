// Where a writer's bytes go: a file that appears whole or not at all, or memory. Knows nothing of the format.

import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { FileHandle } from 'node:fs/promises';
import { syncDirectory, writeFully } from '../base/atomic-file.ts';
import type { ContainerTarget } from './types.ts';

/** What a file is called until it is complete. A leftover of an interrupted run is overwritten by the next. */
const PARTIAL_SUFFIX = '.part';

/**
 * Writes `path + '.part'`, which the first write creates, and renames it on commit after the bytes are on the disk.
 * Rejects with what the file system throws; the writer gives it a code.
 */
export function fileTarget(path: string): ContainerTarget {
  const partial = path + PARTIAL_SUFFIX;
  let opened: Promise<FileHandle> | null = null;
  const handle = (): Promise<FileHandle> => (opened ??= open(partial, 'w'));
  return {
    write: async (bytes, offsetBytes) => writeFully(await handle(), bytes, offsetBytes),
    commit: async () => {
      const file = await handle();
      await file.sync();
      await file.close();
      await rename(partial, path);
      await syncDirectory(dirname(path));
    },
    discard: async () => {
      // Never opened, or not openable: then what stands at the partial name is not ours.
      const file = await opened?.catch(() => undefined);
      if (file === undefined) return;
      await file.close().catch(() => undefined);
      await rm(partial, { force: true });
    },
  };
}

export interface MemoryTarget extends ContainerTarget {
  /** The whole file, once committed. */
  bytes(): Uint8Array;
}

/** A growing buffer, for tests, stores and network answers. */
export function memoryTarget(): MemoryTarget {
  let buffer = new Uint8Array(4096);
  let committedBytes = -1;
  return {
    write: async (bytes, offsetBytes) => {
      const neededBytes = offsetBytes + bytes.length;
      if (neededBytes > buffer.length) {
        const grown = new Uint8Array(Math.max(neededBytes, buffer.length * 2));
        grown.set(buffer);
        buffer = grown;
      }
      buffer.set(bytes, offsetBytes);
    },
    commit: async (byteLength) => {
      committedBytes = byteLength;
    },
    discard: async () => {
      buffer = new Uint8Array(0);
    },
    bytes: () => {
      if (committedBytes < 0) throw new Error('the container is not finished');
      return buffer.subarray(0, committedBytes);
    },
  };
}
