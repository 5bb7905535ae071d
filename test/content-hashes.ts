// What a container decodes to, as hashes: the same fields as `reference/decode.py chunks` prints.

import { createHash } from 'node:crypto';
import { STREAMS } from '../src/base/geometry.ts';
import { decompressBlocks, entropyMethod } from '../src/codec/entropy/blocks.ts';
import { paperCodec } from '../src/codec/paper/paper-codec.ts';
import { parsePaperParameters } from '../src/codec/paper/parameters.ts';
import { createWtcPlan, parseWtcParameters } from '../src/codec/wtc/plan.ts';
import { decodeWtcChunk } from '../src/codec/wtc/wtc-codec.ts';
import type { ChunkEntry, Container, ContainerHeader } from '../src/container/types.ts';
import type { WtcProfile } from '../src/profile/profile.ts';

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
export async function contentHashes(container: Container, profile?: WtcProfile): Promise<ContentHashes> {
  const { header } = container;
  const decode = profile === undefined ? paperDecoder(header) : wtcDecoder(header, profile);
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
    const { packed, coefficients } = await decode(stored, chunk);
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

type DecodeChunk = (
  stored: Uint8Array,
  chunk: ChunkEntry,
) => Promise<{ readonly packed: Uint8Array; readonly coefficients: Float32Array }>;

function paperDecoder(header: ContainerHeader): DecodeChunk {
  const plans = parsePaperParameters(header.codecParameters);
  return async (stored, { stream, startToken, endToken, packedBytes }) => {
    const packed = await decompressBlocks(stored, packedBytes, entropyMethod(header.entropy));
    const coefficients = new Float32Array((endToken - startToken) * plans[stream].rank);
    paperCodec.decodeChunk(packed, endToken - startToken, plans[stream], coefficients);
    return { packed, coefficients };
  };
}

function wtcDecoder(header: ContainerHeader, { tables }: WtcProfile): DecodeChunk {
  const parameters = parseWtcParameters(header.codecParameters);
  return async (stored, { stream, startToken, endToken }) => {
    const plan = createWtcPlan(parameters[stream], tables[stream]);
    const coefficients = new Float32Array((endToken - startToken) * plan.rank);
    decodeWtcChunk(stored, endToken - startToken, plan, coefficients);
    return { packed: stored, coefficients };
  };
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
