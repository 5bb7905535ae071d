// Opens a .kvtc file by range reads and checks it (docs/format/container.md). All but the data (exact rows and chunks)
// is checked on open, the data block by block as it is read. Does not know: the writer, what a chunk's bytes mean.

import { crc32 } from 'node:zlib';
import { invariant, KvtcError } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { LayerRange, StreamKind } from '../base/geometry.ts';
import { decodeChunkIndex, decodePositions } from './chunk-index.ts';
import {
  CHUNK_ENTRY_BYTES,
  DEFAULT_LIMITS,
  exactLayout,
  FIRST_ANCILLARY_KIND,
  POSITION_RUN_BYTES,
  PREAMBLE_BYTES,
  SectionKind,
  streamNumber,
  VERSION,
} from './format.ts';
import type { ExactBlock, ExactLayout, SectionEntry } from './format.ts';
import { checkHeaderLength, decodeHeader } from './header.ts';
import { listParts } from './parts.ts';
import { checksumMismatch, checkZero, headBytes, readPreamble, readSectionTable } from './section-table.ts';
import { fileSource, memorySource } from './source.ts';
import type { ByteSource } from './source.ts';
import type { ChunkEntry, Container, ContainerHeader, ContainerLimits, ContainerPart } from './types.ts';

export interface OpenOptions {
  readonly limits?: Partial<ContainerLimits>;
}

/**
 * Opens a container from a file or from memory. Throws KVTC_FILE_NOT_FOUND, KVTC_CONTAINER_MAGIC, _VERSION, _RESERVED,
 * _TRUNCATED, _CHECKSUM, _LIMIT, _MALFORMED. Nothing is allocated before its length is checked.
 */
export async function openContainer(source: string | Uint8Array, options: OpenOptions = {}): Promise<Container> {
  const bytes = typeof source === 'string' ? await fileSource(source) : memorySource(source);
  try {
    return await readContainer(bytes, { ...DEFAULT_LIMITS, ...options.limits });
  } catch (error) {
    await bytes.close();
    throw error;
  }
}

/** Opens, reads every byte, checks every checksum and rule, closes. Throws what openContainer and reading throw. */
export async function verifyContainer(
  source: string | Uint8Array,
  options: OpenOptions & { readonly signal?: AbortSignal } = {},
): Promise<{
  readonly header: ContainerHeader;
  readonly byteLength: number;
  readonly parts: readonly ContainerPart[];
}> {
  const container = await openContainer(source, options);
  try {
    await container.verify(options);
    return { header: container.header, byteLength: container.byteLength, parts: container.parts() };
  } finally {
    await container.close();
  }
}

async function readContainer(source: ByteSource, limits: ContainerLimits): Promise<Container> {
  const preambleBytes = await source.read(0, Math.min(PREAMBLE_BYTES, source.byteLength));
  const { minor, sectionCount } = readPreamble(preambleBytes, source.byteLength, limits);
  const head = await source.read(0, headBytes(sectionCount));
  const sections = readSectionTable(head, source.byteLength);
  await checkPadding(source, head.length, sections);

  const header = await readHeader(source, sections, minor, limits);
  const exact = exactLayout(header);
  checkLengths(sections, header, exact, limits);
  const read = (kind: number): Promise<Uint8Array> => readSection(source, required(sections, kind));
  const checksums = littleEndianU32(await read(SectionKind.exactChecksums));
  const chunks = decodeChunkIndex(
    await read(SectionKind.chunkIndex),
    required(sections, SectionKind.chunkIndex).offsetBytes,
    required(sections, SectionKind.payload),
    header,
    limits,
  );
  const positions = decodePositions(await read(SectionKind.positions), header.tokenCount);
  const tokens = sections.some((section) => section.kind === SectionKind.tokens)
    ? decodeTokens(await read(SectionKind.tokens))
    : null;
  for (const section of sections) if (section.kind >= FIRST_ANCILLARY_KIND) await readSection(source, section);
  const parts = listParts(source.byteLength, sections, exact, chunks);

  const exactOffset = required(sections, SectionKind.exactRows).offsetBytes;
  const readExactRows = async (stream: StreamKind, rangeIndex: number, layers?: LayerRange): Promise<Uint8Array> => {
    const block = exact.blocks[rangeIndex * 2 + streamNumber(stream)];
    invariant(block !== undefined, `there is no exact range ${rangeIndex}`);
    const { startLayer, endLayer } = layers ?? { startLayer: 0, endLayer: block.layers };
    invariant(startLayer >= 0 && startLayer <= endLayer && endLayer <= block.layers, 'layers outside the model');
    const offsetBytes = exactOffset + block.offsetBytes + startLayer * block.layerBytes;
    const rows = await source.read(offsetBytes, (endLayer - startLayer) * block.layerBytes);
    checkLayers(rows, block, startLayer, offsetBytes, checksums);
    return rows;
  };
  const known = new Set(chunks);
  const readChunk = async (chunk: ChunkEntry): Promise<Uint8Array> => {
    invariant(known.has(chunk), 'the chunk is not an entry of this container');
    const stored = await source.read(chunk.offsetBytes, chunk.storedBytes);
    checkBytes(
      stored,
      chunk.crc32,
      `${chunk.stream} chunk [${chunk.startToken}, ${chunk.endToken})`,
      chunk.offsetBytes,
    );
    return stored;
  };
  const verify = async ({ signal }: { readonly signal?: AbortSignal } = {}): Promise<void> => {
    let exactCrc = 0;
    for (const block of exact.blocks) {
      for (let layer = 0; layer < block.layers; layer++) {
        throwIfAborted(signal);
        const layers = { startLayer: layer, endLayer: layer + 1 };
        exactCrc = crc32(await readExactRows(block.stream, block.rangeIndex, layers), exactCrc);
      }
    }
    checkSectionCrc(required(sections, SectionKind.exactRows), exactCrc);
    let payloadCrc = 0;
    for (const chunk of chunks) {
      throwIfAborted(signal);
      payloadCrc = crc32(await readChunk(chunk), payloadCrc);
    }
    checkSectionCrc(required(sections, SectionKind.payload), payloadCrc);
  };
  return {
    header,
    version: { major: VERSION.major, minor },
    byteLength: source.byteLength,
    tokens,
    positions,
    chunks,
    readExactRows,
    readChunk,
    parts: () => parts,
    verify,
    close: () => source.close(),
  };
}

async function checkPadding(source: ByteSource, headLength: number, sections: readonly SectionEntry[]): Promise<void> {
  let endBytes = headLength;
  for (const { offsetBytes, byteLength } of sections) {
    if (offsetBytes > endBytes) checkZero(await source.read(endBytes, offsetBytes - endBytes), endBytes, 'padding');
    endBytes = offsetBytes + byteLength;
  }
}

async function readHeader(
  source: ByteSource,
  sections: readonly SectionEntry[],
  minor: number,
  limits: ContainerLimits,
): Promise<ContainerHeader> {
  const section = required(sections, SectionKind.header);
  checkHeaderLength(section.byteLength, limits);
  return decodeHeader(await readSection(source, section), minor === VERSION.minor, limits);
}

/** Compares every section's length with what the header says it must be, before anything is read. */
function checkLengths(
  sections: readonly SectionEntry[],
  header: ContainerHeader,
  exact: ExactLayout,
  limits: ContainerLimits,
): void {
  for (const block of exact.blocks) checkLimit('exact rows of a layer', block.layerBytes, limits.exactLayerBytes);
  checkLength(sections, SectionKind.exactRows, 'exact rows', exact.byteLength);
  checkLength(sections, SectionKind.exactChecksums, 'exact checksums', exact.checksums * 4);
  required(sections, SectionKind.payload);
  const index = required(sections, SectionKind.chunkIndex);
  checkMultiple(index, 'chunk index', CHUNK_ENTRY_BYTES);
  checkLimit('chunk index', index.byteLength, limits.chunks * CHUNK_ENTRY_BYTES);
  const positions = required(sections, SectionKind.positions);
  checkMultiple(positions, 'positions', POSITION_RUN_BYTES);
  if (positions.byteLength > header.tokenCount * POSITION_RUN_BYTES) {
    throw malformed(`positions has ${positions.byteLength} bytes, more than one run for each token`);
  }
  if (sections.some((section) => section.kind === SectionKind.tokens)) {
    checkLength(sections, SectionKind.tokens, 'token ids', header.tokenCount * 4);
  }
  for (const section of sections) {
    if (section.kind >= FIRST_ANCILLARY_KIND) {
      checkLimit('ancillary section', section.byteLength, limits.storedChunkBytes);
    }
  }
}

function checkLength(sections: readonly SectionEntry[], kind: number, what: string, expectedBytes: number): void {
  const gotBytes = required(sections, kind).byteLength;
  if (gotBytes !== expectedBytes) {
    throw malformed(`section ${what} has ${gotBytes} bytes; the header makes it ${expectedBytes}`);
  }
}

function checkMultiple(section: SectionEntry, what: string, unitBytes: number): void {
  if (section.byteLength % unitBytes !== 0) {
    throw malformed(`section ${what} has ${section.byteLength} bytes, not a multiple of ${unitBytes}`);
  }
}

function checkLimit(what: string, gotBytes: number, limitBytes: number): void {
  if (gotBytes > limitBytes) {
    throw new KvtcError('KVTC_CONTAINER_LIMIT', `${what}: ${gotBytes} bytes; the limit is ${limitBytes}`, {
      section: what,
      gotBytes,
      limitBytes,
    });
  }
}

function required(sections: readonly SectionEntry[], kind: number): SectionEntry {
  const section = sections.find((entry) => entry.kind === kind);
  if (section === undefined) throw malformed(`section kind ${kind} is missing`);
  return section;
}

async function readSection(source: ByteSource, section: SectionEntry): Promise<Uint8Array> {
  const bytes = await source.read(section.offsetBytes, section.byteLength);
  checkSectionCrc(section, crc32(bytes));
  return bytes;
}

function checkSectionCrc(section: SectionEntry, got: number): void {
  if (got !== section.crc32) {
    throw checksumMismatch(`section of kind ${section.kind}`, section.offsetBytes, got, section.crc32);
  }
}

function checkLayers(
  rows: Uint8Array,
  block: ExactBlock,
  startLayer: number,
  offsetBytes: number,
  checksums: Uint32Array,
): void {
  for (let at = 0, layer = startLayer; at < rows.length; at += block.layerBytes, layer++) {
    const expected = checksums[block.firstChecksum + layer] as number;
    const what = `exact ${block.stream} rows [${block.tokens.startToken}, ${block.tokens.endToken}), layer ${layer}`;
    checkBytes(rows.subarray(at, at + block.layerBytes), expected, what, offsetBytes + at);
  }
}

function checkBytes(bytes: Uint8Array, expected: number, what: string, offsetBytes: number): void {
  const got = crc32(bytes);
  if (got !== expected) throw checksumMismatch(what, offsetBytes, got, expected);
}

function littleEndianU32(bytes: Uint8Array): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Uint32Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(index * 4, true));
}

function decodeTokens(bytes: Uint8Array): Int32Array {
  const tokens = Int32Array.from(littleEndianU32(bytes));
  const index = tokens.findIndex((token) => token < 0);
  if (index >= 0) throw malformed(`token id ${index} is negative`);
  return tokens;
}

function malformed(what: string): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the container is invalid: ${what}`);
}
