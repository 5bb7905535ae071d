// Rows of a model's input embedding, read from its GGUF as they are asked for. Does not know what they are used for, or
// how quantised values become numbers.

import { readSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { KvtcError } from '../../base/errors.ts';
import { malformed } from './gguf-cursor.ts';
import type { Gguf } from './gguf.ts';
import { weightMatrix } from './weights.ts';

const TENSOR = 'token_embd.weight';

/** Stored rows of the input embedding. */
export interface EmbeddingRows {
  /** ggml's number of the element type. */
  readonly typeCode: number;
  /** Values of a row. */
  readonly width: number;
  /** Rows one after the other, in the order asked for. */
  readonly bytes: Uint8Array;
}

/**
 * Reads the embeddings of token ids. Throws KVTC_MODEL_UNSUPPORTED, KVTC_STATE_MISMATCH for an id outside the vocabulary,
 * KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED for a file that ends too soon.
 */
export async function readEmbeddingRows(gguf: Gguf, ids: Int32Array): Promise<EmbeddingRows> {
  const { dims, typeCode, offsetBytes, lengthBytes } = weightMatrix(gguf, TENSOR);
  const [width = 1, tokens = 1] = dims;
  const rowBytes = lengthBytes / tokens;
  const outside = ids.find((id) => id < 0 || id >= tokens);
  if (outside !== undefined) {
    const message = `token id ${outside} is not in the model's vocabulary of ${tokens}`;
    throw new KvtcError('KVTC_STATE_MISMATCH', message, { token: outside, vocabulary: tokens });
  }
  const file = await open(gguf.path, 'r').catch((cause: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open ${gguf.path}`, { path: gguf.path }, { cause });
  });
  try {
    const bytes = new Uint8Array(ids.length * rowBytes);
    for (const [i, id] of ids.entries()) {
      // A row is about a kilobyte: handing it to a thread would take ten times as long as reading it.
      const found = readSync(file.fd, bytes, i * rowBytes, rowBytes, offsetBytes + id * rowBytes);
      if (found !== rowBytes) throw malformed(`ends within tensor ${TENSOR}`, offsetBytes + id * rowBytes + found);
    }
    return { typeCode, width, bytes };
  } finally {
    await file.close();
  }
}
