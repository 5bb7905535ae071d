// The safetensors container, as far as profiles need it: bounded header, dtype F64/F32/F16/I8/I16/I32, contiguous data.
// Format: docs/format/profile.md. Does not know what the tensors mean.

import type { FileHandle } from 'node:fs/promises';
import { z } from 'zod';
import { KvtcError } from '../base/errors.ts';

export type TensorType = 'F64' | 'F32' | 'F16' | 'I8' | 'I16' | 'I32';

export interface TensorShape {
  readonly type: TensorType;
  readonly shape: readonly number[];
}

/** Where one tensor lies in its file. */
export interface TensorEntry extends TensorShape {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Where tensor data starts. */
  readonly dataOffsetBytes: number;
  readonly fileBytes: number;
}

/** Headers beyond this are refused before anything is allocated. */
const MAX_HEADER_BYTES = 16 * 1024 * 1024;

const MAX_TENSORS = 1024;
const LENGTH_BYTES = 8;
const TYPE_BYTES: Readonly<Record<TensorType, number>> = { F64: 8, F32: 4, F16: 2, I8: 1, I16: 2, I32: 4 };

const tensorSchema = z.strictObject({
  dtype: z.enum(['F64', 'F32', 'F16', 'I8', 'I16', 'I32']),
  shape: z.array(z.int().nonnegative()).max(8),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
});
const headerSchema = z.looseObject({ __metadata__: z.record(z.string(), z.string()).default({}) });

/** Bytes of a tensor's data. */
function tensorBytes({ type, shape }: TensorShape): number {
  return shape.reduce((product, extent) => product * extent, TYPE_BYTES[type]);
}

/**
 * Reads and checks the header: lengths, JSON, types, shapes, and that the tensors cover the data part without gap or
 * overlap. Throws KVTC_PROFILE_MALFORMED.
 */
export async function readHeader(file: FileHandle, name: string): Promise<SafetensorsHeader> {
  const stat = await file.stat();
  if (!stat.isFile()) throw malformed(name, 'it is not a regular file');
  const fileBytes = stat.size;
  const prefix = Buffer.alloc(LENGTH_BYTES);
  await readExactly(file, prefix, 0, name);
  const headerBytes = prefix.readBigUInt64LE(0);
  if (headerBytes > BigInt(MAX_HEADER_BYTES) || headerBytes > BigInt(fileBytes - LENGTH_BYTES)) {
    throw malformed(name, `its header claims ${headerBytes} bytes; file has ${fileBytes}, limit ${MAX_HEADER_BYTES}`, {
      headerBytes,
      fileBytes,
    });
  }
  const text = Buffer.alloc(Number(headerBytes));
  await readExactly(file, text, LENGTH_BYTES, name);
  const dataOffsetBytes = LENGTH_BYTES + text.length;
  const { __metadata__: metadata, ...rest } = parseJson(text.toString('utf8'), headerSchema, name, 'the header');
  const names = Object.keys(rest);
  if (names.length > MAX_TENSORS) throw malformed(name, `it lists ${names.length} tensors, limit ${MAX_TENSORS}`);
  const tensors = new Map<string, TensorEntry>();
  for (const key of names) {
    const entry = checked(tensorSchema.safeParse(rest[key]), name, `tensor ${key}`);
    const [begin, end] = entry.data_offsets;
    const shape: TensorShape = { type: entry.dtype, shape: entry.shape };
    const lengthBytes = tensorBytes(shape);
    if (end - begin !== lengthBytes || end > fileBytes - dataOffsetBytes) {
      throw malformed(
        name,
        `tensor ${key} spans [${begin}, ${end}) of ${fileBytes - dataOffsetBytes} data bytes, its shape needs ${lengthBytes}`,
        { tensor: key, beginBytes: begin, endBytes: end, expectedBytes: lengthBytes },
      );
    }
    tensors.set(key, { ...shape, offsetBytes: dataOffsetBytes + begin, lengthBytes });
  }
  checkCoverage(tensors, dataOffsetBytes, fileBytes, name);
  return { metadata: new Map(Object.entries(metadata)), tensors, dataOffsetBytes, fileBytes };
}

/** The file's bytes before the tensor data: length and header JSON, padded with spaces so that data starts 8-aligned. */
export function headerPrefix(
  metadata: Readonly<Record<string, string>>,
  tensors: readonly (TensorShape & { readonly name: string })[],
): Buffer {
  let offset = 0;
  const header: Record<string, unknown> = { __metadata__: metadata };
  for (const { name, type, shape } of tensors) {
    const end = offset + tensorBytes({ type, shape });
    header[name] = { dtype: type, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const json = Buffer.from(JSON.stringify(header), 'utf8');
  const padded = Math.ceil(json.length / 8) * 8;
  const prefix = Buffer.alloc(LENGTH_BYTES + padded, ' ');
  prefix.writeBigUInt64LE(BigInt(padded), 0);
  json.copy(prefix, LENGTH_BYTES);
  return prefix;
}

/** Fills `bytes` from `offsetBytes` of the file. Throws KVTC_PROFILE_MALFORMED where the file ends before. */
export async function readExactly(
  file: FileHandle,
  bytes: Uint8Array,
  offsetBytes: number,
  name: string,
): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, offsetBytes + done);
    if (bytesRead === 0) {
      throw malformed(name, `it ends at ${offsetBytes + done} bytes where ${bytes.length - done} more are needed`, {
        offsetBytes: offsetBytes + done,
        neededBytes: bytes.length - done,
      });
    }
    done += bytesRead;
  }
}

/** Parses JSON text and checks it against a schema. Throws KVTC_PROFILE_MALFORMED naming `part`. */
export function parseJson<T>(text: string, schema: z.ZodType<T>, name: string, part: string): T {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw malformed(name, `${part} is not JSON`, { part }, error);
  }
  return checked(schema.safeParse(value), name, part);
}

export function malformed(
  name: string,
  problem: string,
  details: KvtcError['details'] = {},
  cause?: unknown,
): KvtcError {
  return new KvtcError('KVTC_PROFILE_MALFORMED', `profile ${name}: ${problem}`, { path: name, ...details }, { cause });
}

function checked<T>(result: z.ZodSafeParseResult<T>, name: string, part: string): T {
  if (result.success) return result.data;
  throw malformed(name, `${part} does not fit its schema: ${z.prettifyError(result.error)}`, { part });
}

function checkCoverage(
  tensors: ReadonlyMap<string, TensorEntry>,
  dataOffsetBytes: number,
  fileBytes: number,
  name: string,
): void {
  let end = dataOffsetBytes;
  for (const [key, entry] of [...tensors].sort(([, a], [, b]) => a.offsetBytes - b.offsetBytes)) {
    if (entry.offsetBytes !== end) {
      throw malformed(name, `tensor ${key} begins at byte ${entry.offsetBytes}, the one before ends at ${end}`, {
        tensor: key,
        offsetBytes: entry.offsetBytes,
        expectedBytes: end,
      });
    }
    end += entry.lengthBytes;
  }
  if (end !== fileBytes) {
    throw malformed(name, `its tensors end at byte ${end}, the file has ${fileBytes}`, {
      expectedBytes: end,
      fileBytes,
    });
  }
}
