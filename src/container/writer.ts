// Writes one .kvtc file in a single pass over data that arrives in file order (docs/format/container.md).
// The preamble is written last, so that no prefix of an interrupted write looks like a container.
// Does not know: the reader, what a chunk's bytes mean.

import { crc32 } from 'node:zlib';
import { invariant, KvtcError } from '../base/errors.ts';
import type { LayerRange, StreamKind } from '../base/geometry.ts';
import { createTiling, encodeChunkIndex, encodePositions } from './chunk-index.ts';
import { alignUp, exactLayout, SectionKind, streamNumber } from './format.ts';
import type { SectionEntry } from './format.ts';
import { encodeHeader } from './header.ts';
import { listParts } from './parts.ts';
import { encodeHead, headBytes } from './section-table.ts';
import { fileTarget } from './target.ts';
import type {
  ChunkDescription,
  ChunkEntry,
  ContainerHeader,
  ContainerTarget,
  ContainerWriter,
  FinishedContainer,
} from './types.ts';

/**
 * Starts a container at a path (written as `.part`, renamed by `finish`) or in another target. Throws
 * KVTC_OPTION_INVALID for a header the format cannot hold. Nothing is created before the first write.
 */
export function createContainerWriter(target: string | ContainerTarget, header: ContainerHeader): ContainerWriter {
  const headerBytes = encodeHeader(header);
  if (typeof target !== 'string') return startWriter(target, 'the container', header, headerBytes);
  return startWriter(fileTarget(target), target, header, headerBytes);
}

/** Section without its place, which finish decides for all but the streamed ones. */
interface PendingSection {
  readonly kind: number;
  readonly bytes: Uint8Array;
}

function startWriter(
  target: ContainerTarget,
  name: string,
  header: ContainerHeader,
  headerBytes: Uint8Array,
): ContainerWriter {
  const exact = exactLayout(header);
  const tiling = createTiling(header);
  const chunks: ChunkEntry[] = [];
  const exactChecksums = new Uint32Array(exact.checksums);
  let tokens: Int32Array | null = null;
  let positions: Int32Array | null = null;
  let state: 'open' | 'finished' | 'discarded' = 'open';
  let failure: KvtcError | null = null;

  // Whether token ids will come is known only later, and with them the table grows by an entry of 24 bytes; both
  // lengths leave the header in the same place, so streaming can start at once.
  const headerOffset = alignUp(headBytes(SectionKind.tokens));
  invariant(headerOffset === alignUp(headBytes(SectionKind.tokens - 1)), 'the header moves when token ids are absent');
  const exactOffset = alignUp(headerOffset + headerBytes.length);
  const payloadOffset = alignUp(exactOffset + exact.byteLength);
  let exactCrc = 0;
  let checksumAt = 0;
  let exactAt = exactOffset;
  let payloadCrc = 0;
  let payloadAt = payloadOffset;

  const requireOpen = (): void => {
    if (failure !== null) throw failure;
    invariant(state === 'open', `the container writer is ${state}`);
  };
  const discard = async (): Promise<void> => {
    if (state !== 'open') return;
    state = 'discarded';
    await target.discard();
  };
  const guarded = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (cause) {
      failure ??= writeFailed(name, cause);
      await discard().catch(() => undefined);
      throw failure;
    }
  };

  const writeExactRows = async (
    stream: StreamKind,
    rangeIndex: number,
    rows: Uint8Array,
    layers?: LayerRange,
  ): Promise<void> => {
    requireOpen();
    const block = exact.blocks[rangeIndex * 2 + streamNumber(stream)];
    invariant(block !== undefined, `there is no exact range ${rangeIndex}`);
    const { startLayer, endLayer } = layers ?? { startLayer: 0, endLayer: block.layers };
    invariant(
      startLayer >= 0 && endLayer <= block.layers && block.firstChecksum + startLayer === checksumAt,
      `exact rows must come in file order: ${stream} of range ${rangeIndex}, layers [${startLayer}, ${endLayer})`,
    );
    const byteLength = (endLayer - startLayer) * block.layerBytes;
    invariant(rows.length === byteLength, `${rows.length} bytes of exact rows; expected ${byteLength}`);
    for (let layer = 0; layer < endLayer - startLayer; layer++) {
      const bytes = rows.subarray(layer * block.layerBytes, (layer + 1) * block.layerBytes);
      exactChecksums[checksumAt++] = crc32(bytes);
    }
    exactCrc = crc32(rows, exactCrc);
    const offsetBytes = exactAt;
    exactAt += byteLength;
    await guarded(() => target.write(rows, offsetBytes));
  };

  const writeChunk = async (chunk: ChunkDescription, stored: Uint8Array): Promise<void> => {
    requireOpen();
    const { stream, startToken, endToken, packedBytes } = chunk;
    invariant(Number.isInteger(packedBytes) && packedBytes >= 0 && packedBytes < 2 ** 32, 'packedBytes is not a u32');
    const entry: ChunkEntry = {
      stream,
      startToken,
      endToken,
      packedBytes,
      storedBytes: stored.length,
      crc32: crc32(stored),
      offsetBytes: payloadAt,
    };
    tiling.add(entry);
    chunks.push(Object.freeze(entry));
    payloadCrc = crc32(stored, payloadCrc);
    payloadAt += stored.length;
    await guarded(() => target.write(stored, entry.offsetBytes));
  };

  const finish = async (): Promise<FinishedContainer> => {
    requireOpen();
    invariant(positions !== null, 'writePositions was not called');
    invariant(checksumAt === exact.checksums, 'exact rows are missing');
    tiling.finish();
    const sections: SectionEntry[] = [
      {
        kind: SectionKind.header,
        crc32: crc32(headerBytes),
        offsetBytes: headerOffset,
        byteLength: headerBytes.length,
      },
      { kind: SectionKind.exactRows, crc32: exactCrc, offsetBytes: exactOffset, byteLength: exact.byteLength },
      {
        kind: SectionKind.payload,
        crc32: payloadCrc,
        offsetBytes: payloadOffset,
        byteLength: payloadAt - payloadOffset,
      },
    ];
    const pending: PendingSection[] = [
      { kind: SectionKind.exactChecksums, bytes: littleEndian(exactChecksums) },
      { kind: SectionKind.chunkIndex, bytes: encodeChunkIndex(chunks) },
      { kind: SectionKind.positions, bytes: encodePositions(positions) },
    ];
    if (tokens !== null) pending.push({ kind: SectionKind.tokens, bytes: littleEndian(tokens) });
    let endBytes = payloadAt;
    for (const { kind, bytes } of pending) {
      const offsetBytes = alignUp(endBytes);
      sections.push({ kind, crc32: crc32(bytes), offsetBytes, byteLength: bytes.length });
      endBytes = offsetBytes + bytes.length;
    }
    const head = encodeHead(sections);
    const parts = listParts(endBytes, sections, exact, chunks);
    await guarded(async () => {
      for (const part of parts) {
        if (part.kind === 'padding') await target.write(new Uint8Array(part.byteLength), part.offsetBytes);
      }
      await target.write(headerBytes, headerOffset);
      for (const [index, { bytes }] of pending.entries()) {
        const section = sections[sections.length - pending.length + index] as SectionEntry;
        await target.write(bytes, section.offsetBytes);
      }
      await target.write(head, 0);
      await target.commit(endBytes);
    });
    state = 'finished';
    return Object.freeze({ byteLength: endBytes, parts });
  };

  return {
    writeTokens: (ids) => {
      requireOpen();
      checkIntegers('token ids', ids, header.tokenCount);
      tokens = ids.slice();
    },
    writePositions: (values) => {
      requireOpen();
      checkIntegers('positions', values, header.tokenCount);
      positions = values.slice();
    },
    writeExactRows,
    writeChunk,
    finish,
    abort: discard,
  };
}

function checkIntegers(what: string, values: Int32Array, tokenCount: number): void {
  if (values.length !== tokenCount || values.some((value) => value < 0)) {
    throw new KvtcError('KVTC_OPTION_INVALID', `${what}: expected ${tokenCount} integers, none negative`, {
      got: values.length,
      expected: tokenCount,
    });
  }
}

/** Bytes of 32-bit integers in the file's order, whatever the machine's. */
function littleEndian(values: Int32Array | Uint32Array): Uint8Array {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  values.forEach((value, index) => view.setUint32(index * 4, value, true));
  return bytes;
}

function writeFailed(name: string, cause: unknown): KvtcError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new KvtcError(
    'KVTC_WRITE_FAILED',
    `cannot write ${name}: ${why}. Nothing was left behind`,
    { name },
    { cause },
  );
}
