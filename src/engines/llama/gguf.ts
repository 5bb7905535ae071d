// Reader of GGUF files: metadata, tensor directory, one small tensor's data, where every byte goes.
// Versions 2 and 3, little-endian. Lengths are checked against the file and the limits before anything is allocated.
// Does not know what keys mean. Source: the GGUF page of the ggml project.

import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { KvtcError } from '../../base/errors.ts';
import { GgufCursor, malformed } from './gguf-cursor.ts';
import type { GgufValue } from './gguf-cursor.ts';

export type { GgufValue } from './gguf-cursor.ts';

export interface GgufTensor {
  readonly name: string;
  /** Fastest dimension first, 1 to 4 of them. */
  readonly dims: readonly number[];
  /** ggml's name, such as `f32` or `q4_K`. */
  readonly type: string;
  /** ggml's number of the type. */
  readonly typeCode: number;
  /** From the start of the file. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface Gguf {
  readonly path: string;
  readonly version: number;
  readonly byteLength: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /**
   * sha256, hex, of the file's bytes up to the end of the tensor directory: magic, version, counts, every key, value and
   * tensor entry, in file order. Tensor data is not in it; see fingerprintModel.
   */
  readonly headerSha256: string;
  readonly metadataBytes: number;
  readonly directoryBytes: number;
  /** First byte of tensor data. */
  readonly dataOffsetBytes: number;
}

const HEADER_BYTES = 24;
/** First read; most headers fit. It doubles until the header does. */
const FIRST_READ_BYTES = 4 << 20;
/** Largest header taken: vocabularies of a million tokens stay under 64 MiB. */
const MAX_HEADER_BYTES = 256 << 20;
const LIMITS = { metadata: 65_536, tensors: 262_144, nameBytes: 256 } as const;

/** ggml type number → name, values per block, bytes per block. */
const TENSOR_TYPES: ReadonlyMap<number, readonly [name: string, values: number, bytes: number]> = new Map([
  [0, ['f32', 1, 4]],
  [1, ['f16', 1, 2]],
  [2, ['q4_0', 32, 18]],
  [3, ['q4_1', 32, 20]],
  [6, ['q5_0', 32, 22]],
  [7, ['q5_1', 32, 24]],
  [8, ['q8_0', 32, 34]],
  [9, ['q8_1', 32, 36]],
  [10, ['q2_K', 256, 84]],
  [11, ['q3_K', 256, 110]],
  [12, ['q4_K', 256, 144]],
  [13, ['q5_K', 256, 176]],
  [14, ['q6_K', 256, 210]],
  [15, ['q8_K', 256, 292]],
  [16, ['iq2_xxs', 256, 66]],
  [17, ['iq2_xs', 256, 74]],
  [18, ['iq3_xxs', 256, 98]],
  [19, ['iq1_s', 256, 50]],
  [20, ['iq4_nl', 32, 18]],
  [21, ['iq3_s', 256, 110]],
  [22, ['iq2_s', 256, 82]],
  [23, ['iq4_xs', 256, 136]],
  [24, ['i8', 1, 1]],
  [25, ['i16', 1, 2]],
  [26, ['i32', 1, 4]],
  [27, ['i64', 1, 8]],
  [28, ['f64', 1, 8]],
  [29, ['iq1_m', 256, 56]],
  [30, ['bf16', 1, 2]],
  [34, ['tq1_0', 256, 54]],
  [35, ['tq2_0', 256, 66]],
  [39, ['mxfp4', 32, 17]],
]);

/** Reads a file's metadata and directory. Throws KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED. */
export async function readGguf(path: string): Promise<Gguf> {
  const file = await openGguf(path);
  try {
    const { size } = await file.stat();
    let bytes = new Uint8Array(0);
    for (let wanted = FIRST_READ_BYTES; ; wanted *= 2) {
      bytes = await readFrom(file, 0, Math.min(wanted, size));
      const gguf = parseGguf(bytes, size, path);
      if (gguf !== null) return gguf;
      if (wanted >= MAX_HEADER_BYTES) throw malformed(`has a header of more than ${MAX_HEADER_BYTES} bytes`, wanted);
    }
  } finally {
    await file.close();
  }
}

/**
 * Parses a header from the first bytes of a file of `byteLength` bytes. Returns null when they are too few and the file
 * has more. Throws KVTC_GGUF_MALFORMED.
 */
export function parseGguf(bytes: Uint8Array, byteLength: number, path: string): Gguf | null {
  const cursor = new GgufCursor(bytes, byteLength);
  try {
    return parse(cursor, path);
  } catch (error) {
    if (cursor.ranOut && bytes.length < byteLength) return null;
    throw error;
  }
}

function parse(cursor: GgufCursor, path: string): Gguf {
  if (cursor.u32('magic') !== 0x46554747) throw malformed('does not begin with "GGUF"', 0);
  const version = cursor.u32('version');
  if (version !== 2 && version !== 3) {
    const hint = version > 0xffff ? ' (a big-endian file?)' : '';
    throw malformed(`has version ${version}${hint}; versions 2 and 3 are read`, 4);
  }
  const tensorCount = cursor.count('tensor count', LIMITS.tensors);
  const metadataCount = cursor.count('metadata count', LIMITS.metadata);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < metadataCount; i++) {
    const at = cursor.offset;
    const key = cursor.string('key', LIMITS.nameBytes);
    if (metadata.has(key)) throw malformed(`has key ${JSON.stringify(key)} twice`, at);
    metadata.set(key, cursor.value(key));
  }
  const directoryAt = cursor.offset;
  const entries: { tensor: GgufTensor; at: number }[] = [];
  for (let i = 0; i < tensorCount; i++) entries.push({ at: cursor.offset, tensor: tensorEntry(cursor) });
  const end = cursor.offset;
  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    throw malformed(`has alignment ${JSON.stringify(alignment)}; expected a power of two`, HEADER_BYTES);
  }
  const dataOffsetBytes = Math.ceil(end / alignment) * alignment;
  const tensors = new Map<string, GgufTensor>();
  for (const { tensor, at } of entries) {
    const offsetBytes = dataOffsetBytes + tensor.offsetBytes;
    if (tensors.has(tensor.name)) throw malformed(`has tensor ${JSON.stringify(tensor.name)} twice`, at);
    if (tensor.offsetBytes % alignment !== 0) throw malformed(`places ${tensor.name} off its alignment`, at);
    if (offsetBytes + tensor.lengthBytes > cursor.byteLength) {
      throw malformed(
        `ends within tensor ${tensor.name}: it needs ${offsetBytes + tensor.lengthBytes} bytes, the file has ${cursor.byteLength}`,
        at,
      );
    }
    tensors.set(tensor.name, { ...tensor, offsetBytes });
  }
  refuseOverlap(tensors);
  return {
    path,
    version,
    byteLength: cursor.byteLength,
    metadata,
    tensors,
    headerSha256: createHash('sha256').update(cursor.bytes.subarray(0, end)).digest('hex'),
    metadataBytes: directoryAt - HEADER_BYTES,
    directoryBytes: end - directoryAt,
    dataOffsetBytes,
  };
}

function tensorEntry(cursor: GgufCursor): GgufTensor {
  const at = cursor.offset;
  const name = cursor.string('tensor name', LIMITS.nameBytes);
  const dimensions = cursor.u32('dimension count');
  if (dimensions < 1 || dimensions > 4) throw malformed(`gives ${name} ${dimensions} dimensions`, at);
  const dims = Array.from({ length: dimensions }, () => cursor.count('dimension', Number.MAX_SAFE_INTEGER));
  const code = cursor.u32('tensor type');
  const type = TENSOR_TYPES.get(code);
  if (type === undefined) throw malformed(`gives ${name} the unknown type ${code}`, at);
  const offsetBytes = cursor.count('tensor offset', Number.MAX_SAFE_INTEGER);
  const [typeName, blockValues, blockBytes] = type;
  const lengthBytes = (dims.reduce((product, dim) => product * dim, 1) / blockValues) * blockBytes;
  if ((dims[0] as number) % blockValues !== 0 || !Number.isSafeInteger(lengthBytes)) {
    throw malformed(`gives ${name} impossible dimensions ${dims.join(' × ')} of ${typeName}`, at);
  }
  return { name, dims, type: typeName, typeCode: code, offsetBytes, lengthBytes };
}

function refuseOverlap(tensors: ReadonlyMap<string, GgufTensor>): void {
  let end = 0;
  let before = '';
  for (const { name, offsetBytes, lengthBytes } of inFileOrder(tensors)) {
    if (offsetBytes < end) throw malformed(`places ${name} over ${before}`, offsetBytes);
    end = offsetBytes + lengthBytes;
    before = name;
  }
}

function inFileOrder(tensors: ReadonlyMap<string, GgufTensor>): GgufTensor[] {
  return [...tensors.values()].toSorted((a, b) => a.offsetBytes - b.offsetBytes || a.lengthBytes - b.lengthBytes);
}

/**
 * Reads one tensor's bytes as stored. Throws KVTC_GGUF_MALFORMED when it is larger than `limitBytes`, KVTC_FILE_NOT_FOUND.
 */
export async function readTensor(gguf: Gguf, tensor: GgufTensor, limitBytes = 1 << 20): Promise<Uint8Array> {
  if (tensor.lengthBytes > limitBytes) {
    throw malformed(
      `has ${tensor.lengthBytes} bytes in ${tensor.name}; at most ${limitBytes} expected`,
      tensor.offsetBytes,
    );
  }
  const file = await openGguf(gguf.path);
  try {
    return await readFrom(file, tensor.offsetBytes, tensor.lengthBytes);
  } finally {
    await file.close();
  }
}

/** Bytes of every tensor that the fingerprint covers: enough to tell fine-tunes apart, a few MB of reading at most. */
const FINGERPRINT_BYTES = 4096;

/**
 * What tells models apart, also two of the same shape and metadata: sha256, hex, over the header's sha256 (32 bytes) and
 * the first 4 096 bytes of every tensor, in directory order. Throws KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED.
 */
export async function fingerprintModel(gguf: Gguf): Promise<string> {
  const hash = createHash('sha256').update(Buffer.from(gguf.headerSha256, 'hex'));
  const file = await openGguf(gguf.path);
  try {
    for (const { name, offsetBytes, lengthBytes } of gguf.tensors.values()) {
      const bytes = new Uint8Array(Math.min(lengthBytes, FINGERPRINT_BYTES));
      const { bytesRead } = await file.read(bytes, 0, bytes.length, offsetBytes);
      if (bytesRead !== bytes.length) throw malformed(`ends within tensor ${name}`, offsetBytes + bytesRead);
      hash.update(bytes);
    }
  } finally {
    await file.close();
  }
  return hash.digest('hex');
}

export interface GgufPart {
  readonly name: string;
  readonly byteLength: number;
  /** Tensors or pieces the part gathers. */
  readonly count: number;
}

/** Where a file's bytes go: header, metadata, directory, padding, tensor data by type. Parts sum to the file's size. */
export async function describeGguf(path: string): Promise<Gguf & { readonly parts: readonly GgufPart[] }> {
  const gguf = await readGguf(path);
  const byType = new Map<string, { byteLength: number; count: number }>();
  let padding = gguf.byteLength - HEADER_BYTES - gguf.metadataBytes - gguf.directoryBytes;
  for (const { type, lengthBytes } of gguf.tensors.values()) {
    const part = byType.get(type) ?? { byteLength: 0, count: 0 };
    byType.set(type, { byteLength: part.byteLength + lengthBytes, count: part.count + 1 });
    padding -= lengthBytes;
  }
  const parts = [
    { name: 'header', byteLength: HEADER_BYTES, count: 1 },
    { name: 'metadata', byteLength: gguf.metadataBytes, count: gguf.metadata.size },
    { name: 'tensor directory', byteLength: gguf.directoryBytes, count: gguf.tensors.size },
    ...[...byType].map(([type, part]) => ({ name: `tensors, ${type}`, ...part })),
    { name: 'padding', byteLength: padding, count: 1 },
  ];
  return { ...gguf, parts };
}

async function openGguf(path: string): Promise<FileHandle> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open the model file ${path}`, { path }, { cause });
  }
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new KvtcError('KVTC_FILE_NOT_FOUND', `${path} is not a file`, { path });
}

async function readFrom(file: FileHandle, offsetBytes: number, lengthBytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(lengthBytes);
  for (let done = 0; done < lengthBytes;) {
    const { bytesRead } = await file.read(bytes, done, lengthBytes - done, offsetBytes + done);
    if (bytesRead === 0) throw malformed('became shorter while being read', offsetBytes + done);
    done += bytesRead;
  }
  return bytes;
}
