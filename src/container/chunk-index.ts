// Chunk index and position runs ⇄ bytes (docs/format/container.md, sections 5 and 6). Does not know what chunks hold.

import { KvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import type { TokenRange } from '../base/geometry.ts';
import { CHUNK_ENTRY_BYTES, POSITION_RUN_BYTES, streamNumber } from './format.ts';
import { checkZero } from './section-table.ts';
import type { ChunkEntry, ContainerHeader, ContainerLimits } from './types.ts';

/** The index section of `chunks`, which must be in file order. */
export function encodeChunkIndex(chunks: readonly ChunkEntry[]): Uint8Array {
  const bytes = new Uint8Array(chunks.length * CHUNK_ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  chunks.forEach((chunk, index) => {
    const at = index * CHUNK_ENTRY_BYTES;
    view.setUint32(at, chunk.startToken, true);
    view.setUint32(at + 4, chunk.endToken, true);
    view.setUint32(at + 8, chunk.storedBytes, true);
    view.setUint32(at + 12, chunk.packedBytes, true);
    view.setUint32(at + 16, chunk.crc32, true);
    view.setUint8(at + 20, streamNumber(chunk.stream));
  });
  return bytes;
}

/**
 * The entries of an index section that lies at `offsetBytes`; the payload begins at `payloadOffsetBytes`. Entry rules
 * and tiling are checked. Throws KVTC_CONTAINER_MALFORMED, _RESERVED, _LIMIT.
 */
export function decodeChunkIndex(
  bytes: Uint8Array,
  offsetBytes: number,
  payload: { readonly offsetBytes: number; readonly byteLength: number },
  header: ContainerHeader,
  limits: ContainerLimits,
): ChunkEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks: ChunkEntry[] = [];
  let payloadAt = payload.offsetBytes;
  for (let at = 0; at < bytes.length; at += CHUNK_ENTRY_BYTES) {
    const stream = STREAMS[view.getUint8(at + 20)];
    if (stream === undefined) throw malformedIndex(`entry ${chunks.length} names stream ${view.getUint8(at + 20)}`);
    checkZero(bytes.subarray(at + 21, at + 24), offsetBytes + at + 21, 'reserved bytes of the chunk index');
    const chunk = {
      stream,
      startToken: view.getUint32(at, true),
      endToken: view.getUint32(at + 4, true),
      storedBytes: view.getUint32(at + 8, true),
      packedBytes: view.getUint32(at + 12, true),
      crc32: view.getUint32(at + 16, true),
      offsetBytes: payloadAt,
    };
    checkBytes('stored', chunk.storedBytes, limits.storedChunkBytes);
    checkBytes('packed', chunk.packedBytes, limits.packedChunkBytes);
    payloadAt += chunk.storedBytes;
    chunks.push(Object.freeze(chunk));
  }
  if (payloadAt !== payload.offsetBytes + payload.byteLength) {
    throw malformedIndex(
      `its chunks hold ${payloadAt - payload.offsetBytes} bytes, the payload section ${payload.byteLength}`,
    );
  }
  const tiling = createTiling(header);
  for (const chunk of chunks) tiling.add(chunk);
  tiling.finish();
  return chunks;
}

function checkBytes(what: string, gotBytes: number, limitBytes: number): void {
  if (gotBytes > limitBytes) {
    throw new KvtcError('KVTC_CONTAINER_LIMIT', `a chunk has ${gotBytes} ${what} bytes; the limit is ${limitBytes}`, {
      section: 'chunk index',
      gotBytes,
      limitBytes,
    });
  }
}

/** Checks that chunks come in file order and cover every token outside the exact ranges exactly once per stream. */
export interface ChunkTiling {
  /** Throws KVTC_CONTAINER_MALFORMED when `chunk` is not one that may come next. */
  add(chunk: Pick<ChunkEntry, 'stream' | 'startToken' | 'endToken'>): void;
  /** Throws KVTC_CONTAINER_MALFORMED when tokens are left. */
  finish(): void;
}

export function createTiling(header: ContainerHeader): ChunkTiling {
  const { tokenCount, chunkTokens, exactRanges } = header;
  const next = { key: 0, value: 0 };
  const rangeAt = { key: 0, value: 0 };
  let before: { readonly startToken: number; readonly stream: string } = { startToken: -1, stream: 'value' };
  // First token at or after the stream's cursor that needs a chunk, and where the run of such tokens ends.
  const gap = (stream: 'key' | 'value'): TokenRange => {
    for (let range = exactRanges[rangeAt[stream]]; range?.startToken === next[stream];) {
      next[stream] = range.endToken;
      range = exactRanges[++rangeAt[stream]];
    }
    return { startToken: next[stream], endToken: exactRanges[rangeAt[stream]]?.startToken ?? tokenCount };
  };
  return {
    add: ({ stream, startToken, endToken }) => {
      const name = `${stream} chunk [${startToken}, ${endToken})`;
      const ordered = startToken > before.startToken || (startToken === before.startToken && before.stream < stream);
      if (!ordered) throw malformedIndex(`${name} stands out of order`);
      const free = gap(stream);
      if (startToken !== free.startToken) throw malformedIndex(`${name} begins where ${free.startToken} was expected`);
      if (endToken <= startToken || endToken > free.endToken) {
        throw malformedIndex(`${name} must end after its start and not after ${free.endToken}`);
      }
      if (endToken - startToken > chunkTokens) throw malformedIndex(`${name} is longer than ${chunkTokens} tokens`);
      next[stream] = endToken;
      before = { startToken, stream };
    },
    finish: () => {
      for (const stream of STREAMS) {
        const { startToken } = gap(stream);
        if (startToken < tokenCount) throw malformedIndex(`no ${stream} chunk begins at token ${startToken}`);
      }
    },
  };
}

/** The positions section: maximal runs of consecutive positions. */
export function encodePositions(positions: Int32Array): Uint8Array {
  const runs: number[] = [];
  for (let token = 0; token < positions.length; token++) {
    const position = positions[token] as number;
    if (token > 0 && position === (positions[token - 1] as number) + 1) {
      runs[runs.length - 1] = (runs.at(-1) as number) + 1;
    } else {
      runs.push(position, 1);
    }
  }
  const bytes = new Uint8Array(runs.length * 4);
  const view = new DataView(bytes.buffer);
  runs.forEach((value, index) => view.setUint32(index * 4, value, true));
  return bytes;
}

/** The inverse: i32[tokenCount]. Throws KVTC_CONTAINER_MALFORMED unless the runs are valid, maximal and complete. */
export function decodePositions(bytes: Uint8Array, tokenCount: number): Int32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const positions = new Int32Array(tokenCount);
  let token = 0;
  let continued = -1;
  for (let at = 0; at < bytes.length; at += POSITION_RUN_BYTES) {
    const first = view.getUint32(at, true);
    const count = view.getUint32(at + 4, true);
    if (count === 0 || first + count > 2 ** 31 || count > tokenCount - token || first === continued) {
      throw new KvtcError(
        'KVTC_CONTAINER_MALFORMED',
        `position run ${at / POSITION_RUN_BYTES} (${count} from ${first}) is empty, too long or continues the one before`,
        { section: 'positions', first, count, tokensLeft: tokenCount - token },
      );
    }
    for (let index = 0; index < count; index++) positions[token++] = first + index;
    continued = first + count;
  }
  if (token !== tokenCount) {
    throw new KvtcError('KVTC_CONTAINER_MALFORMED', `positions are given for ${token} of ${tokenCount} tokens`, {
      section: 'positions',
      got: token,
      expected: tokenCount,
    });
  }
  return positions;
}

function malformedIndex(what: string): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the chunk index is invalid: ${what}`, { section: 'chunk index' });
}
