// What a container of the paper's codec decodes to, as hashes: the same fields as `reference/decode.py chunks` prints.

import { createHash } from 'node:crypto';
import { STREAMS } from '../src/base/geometry.ts';
import { decompressBlocks, entropyMethod } from '../src/codec/entropy/blocks.ts';
import { paperCodec } from '../src/codec/paper/paper-codec.ts';
import { parsePaperParameters } from '../src/codec/paper/parameters.ts';
import type { Container } from '../src/container/types.ts';

export interface ContentHashes {
  readonly tokensSha256: string | null;
  readonly positionsSha256: string;
  readonly exact: readonly { stream: string; startToken: number; endToken: number; sha256: string }[];
  readonly chunks: readonly {
    stream: string;
    startToken: number;
    endToken: number;
    storedBytes: number;
    packedSha256: string;
    coefficientsSha256: string;
  }[];
}

/** Decodes every part. Token ids and positions are hashed as i32, coefficients are hashed as f32 [tokens, rank], all little-endian. */
export async function contentHashes(container: Container): Promise<ContentHashes> {
  const { header } = container;
  const plans = parsePaperParameters(header.codecParameters);
  const exact = [];
  for (const [index, range] of header.exactRanges.entries()) {
    for (const stream of STREAMS) {
      exact.push({ stream, ...range, sha256: sha256(await container.readExactRows(stream, index)) });
    }
  }
  const chunks = [];
  for (const chunk of container.chunks) {
    const { stream, startToken, endToken, storedBytes } = chunk;
    const stored = await container.readChunk(chunk);
    const packed = await decompressBlocks(stored, chunk.packedBytes, entropyMethod(header.entropy));
    const coefficients = new Float32Array((endToken - startToken) * plans[stream].rank);
    paperCodec.decodeChunk(packed, endToken - startToken, plans[stream], coefficients);
    chunks.push({
      stream,
      startToken,
      endToken,
      storedBytes,
      packedSha256: sha256(packed),
      coefficientsSha256: sha256(new Uint8Array(coefficients.buffer)),
    });
  }
  return {
    tokensSha256: container.tokens === null ? null : sha256(new Uint8Array(container.tokens.buffer)),
    positionsSha256: sha256(new Uint8Array(container.positions.buffer)),
    exact,
    chunks,
  };
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
