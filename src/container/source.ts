// Where a reader's bytes come from: ranges of an open file, or of memory. Knows nothing of the format.

import { open } from 'node:fs/promises';
import { KvtcError } from '../base/errors.ts';
import { truncated } from './section-table.ts';

export interface ByteSource {
  readonly byteLength: number;
  /**
   * Exactly `byteLength` bytes from `offsetBytes`, which the caller has checked against the length of the source.
   * Throws KVTC_CONTAINER_TRUNCATED when the file has shrunk meanwhile. The result may share the source's memory.
   */
  read(offsetBytes: number, byteLength: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

export function memorySource(bytes: Uint8Array): ByteSource {
  return {
    byteLength: bytes.length,
    read: async (offsetBytes, byteLength) => bytes.subarray(offsetBytes, offsetBytes + byteLength),
    close: async () => undefined,
  };
}

/** Throws KVTC_FILE_NOT_FOUND when `path` is not a readable file. */
export async function fileSource(path: string): Promise<ByteSource> {
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw notReadable(path, cause);
  });
  const stat = await handle.stat();
  if (!stat.isFile()) {
    await handle.close();
    throw notReadable(path, new Error('not a regular file'));
  }
  return {
    byteLength: stat.size,
    read: async (offsetBytes, byteLength) => {
      const bytes = new Uint8Array(byteLength);
      for (let done = 0; done < byteLength;) {
        const { bytesRead } = await handle.read(bytes, done, byteLength - done, offsetBytes + done);
        if (bytesRead === 0) throw truncated('content', offsetBytes + byteLength, offsetBytes + done);
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

function notReadable(path: string, cause: unknown): KvtcError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open ${path}: ${why}`, { path }, { cause });
}
