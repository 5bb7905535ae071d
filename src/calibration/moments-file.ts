// Moments on disk, so that a calibration can be interrupted, resumed and merged. Little-endian:
//   8 bytes magic | u32 header bytes | u32 CRC-32 of all that follows | JSON header, space-padded to 8 |
//   f64 sums[p] | f64 products[p(p+1)/2] | f32 shift[p] | i16 exponents[p]
// Does not know what the sums mean (moments.ts).

import { open } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { z } from 'zod';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import { triangleSize } from '../linalg/dense.ts';
import type { Moments } from './moments.ts';

const MAGIC = Uint8Array.of(0x89, 0x4b, 0x56, 0x4d, 0x0d, 0x0a, 0x1a, 0x01);
const PREAMBLE_BYTES = 16;
const MAX_HEADER_BYTES = 65_536;
/** Bounds the arrays before the file's length is compared; products of 2^16 features are 16 GiB. */
const MAX_WIDTH = 65_536;
/** One system call moves at most 2 GiB; smaller pieces keep the checksum in cache. */
const PIECE_BYTES = 8 * 1024 * 1024;

const headerSchema = z.strictObject({
  key: z.string(),
  width: z.int().min(1).max(MAX_WIDTH),
  rows: z
    .int()
    .min(0)
    .max(2 ** 53),
});

/** Writes moments; the file appears whole or not at all. Throws KVTC_WRITE_FAILED. */
export async function saveMoments(path: string, moments: Moments): Promise<void> {
  const { key, width } = moments.frame;
  const json = JSON.stringify({ key, width, rows: moments.rows });
  const bytes = Buffer.byteLength(json);
  const header = Buffer.from(json + ' '.repeat((8 - (bytes % 8)) % 8));
  const parts = [header, ...dataParts(moments)];
  const preamble = Buffer.alloc(PREAMBLE_BYTES);
  preamble.set(MAGIC);
  preamble.writeUInt32LE(header.length, 8);
  let checksum = 0;
  for (const part of parts) for (const piece of pieces(part)) checksum = crc32(piece, checksum);
  preamble.writeUInt32LE(checksum, 12);
  await replaceFile(path, async (file) => {
    await writeFully(file, preamble, 0);
    let offsetBytes = PREAMBLE_BYTES;
    for (const part of parts) {
      for (const piece of pieces(part)) {
        await writeFully(file, piece, offsetBytes);
        offsetBytes += piece.length;
      }
    }
  });
}

/**
 * Reads moments. Throws KVTC_FILE_NOT_FOUND, KVTC_MOMENTS_MALFORMED (truncated, too long, damaged), or
 * KVTC_MOMENTS_MISMATCH when `key` is given and the file has another.
 */
export async function loadMoments(path: string, key?: string): Promise<Moments> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open ${path}`, { path }, { cause });
  }
  try {
    const { size } = await file.stat();
    const preamble = Buffer.alloc(PREAMBLE_BYTES);
    if (size < PREAMBLE_BYTES) throw malformed(path, `${size} bytes are too few for a header`);
    await fill(file, path, preamble, 0);
    if (!MAGIC.every((byte, i) => preamble[i] === byte))
      throw malformed(path, 'it does not start with the magic bytes');
    const headerBytes = preamble.readUInt32LE(8);
    if (headerBytes > MAX_HEADER_BYTES || headerBytes % 8 !== 0 || PREAMBLE_BYTES + headerBytes > size) {
      throw malformed(path, `a header of ${headerBytes} bytes cannot be`);
    }
    const headerPart = Buffer.alloc(headerBytes);
    await fill(file, path, headerPart, PREAMBLE_BYTES);
    const header = parseHeader(path, headerPart);
    const dataBytes = 8 * (header.width + triangleSize(header.width)) + 6 * header.width;
    if (size !== PREAMBLE_BYTES + headerBytes + dataBytes) {
      throw malformed(
        path,
        `${size} bytes, expected ${PREAMBLE_BYTES + headerBytes + dataBytes} for width ${header.width}`,
      );
    }
    if (key !== undefined && key !== header.key) {
      throw new KvtcError('KVTC_MOMENTS_MISMATCH', `${path} holds moments of "${header.key}", expected "${key}"`, {
        path,
        gotKey: header.key,
        expectedKey: key,
      });
    }
    const moments: Moments = {
      frame: {
        key: header.key,
        width: header.width,
        shift: new Float32Array(header.width),
        exponents: new Int16Array(header.width),
      },
      rows: header.rows,
      sums: new Float64Array(header.width),
      products: new Float64Array(triangleSize(header.width)),
    };
    let checksum = crc32(headerPart);
    let offsetBytes = PREAMBLE_BYTES + headerBytes;
    for (const part of dataParts(moments)) {
      for (const piece of pieces(part)) {
        await fill(file, path, piece, offsetBytes);
        checksum = crc32(piece, checksum);
        offsetBytes += piece.length;
      }
    }
    if (checksum !== preamble.readUInt32LE(12)) throw malformed(path, 'its checksum does not match');
    return moments;
  } finally {
    await file.close();
  }
}

function dataParts({ sums, products, frame }: Moments): Uint8Array[] {
  return [sums, products, frame.shift, frame.exponents].map(
    (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength),
  );
}

function* pieces(part: Uint8Array): Generator<Uint8Array> {
  for (let start = 0; start < part.length; start += PIECE_BYTES) yield part.subarray(start, start + PIECE_BYTES);
}

async function fill(file: FileHandle, path: string, target: Uint8Array, offsetBytes: number): Promise<void> {
  let done = 0;
  while (done < target.length) {
    const { bytesRead } = await file.read(target, done, target.length - done, offsetBytes + done);
    if (bytesRead === 0) throw malformed(path, `it ends at byte ${offsetBytes + done}`);
    done += bytesRead;
  }
}

function parseHeader(path: string, bytes: Buffer): z.infer<typeof headerSchema> {
  try {
    return headerSchema.parse(JSON.parse(bytes.toString('utf8')));
  } catch (cause) {
    throw malformed(path, 'its header is not understood', cause);
  }
}

function malformed(path: string, problem: string, cause?: unknown): KvtcError {
  return new KvtcError('KVTC_MOMENTS_MALFORMED', `${path} is no moments file: ${problem}`, { path }, { cause });
}
