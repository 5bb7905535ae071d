// The lossless stage: packed chunk bytes ⇄ a frame of independently compressed blocks of 64 KiB (reading R6).
// Frame layout: docs/format/paper-codec.md. Runs on libuv's pool through node:zlib. Does not know what the bytes mean.

import { promisify } from 'node:util';
import { constants, deflateRaw, inflateRaw, zstdCompress, zstdDecompress } from 'node:zlib';
import type { ZlibOptions, ZstdOptions } from 'node:zlib';
import { KvtcError, invariant } from '../../base/errors.ts';

/** `none` stores the packed bytes as they are, without a frame. */
export type EntropyMethod = 'none' | 'deflate' | 'zstd';

export interface EntropyOptions {
  readonly method: EntropyMethod;
  /**
   * DEFLATE 0-9 (0 = Huffman coding without a search for repeats, unlike zlib's 0) or zstd 1-19; the method's default
   * when undefined. Ignored by `none`.
   */
  readonly level?: number | undefined;
}

/** Packed bytes a block covers; the last block of a chunk may be shorter. */
export const BLOCK_BYTES = 65_536;

/**
 * Quantised codes hardly ever repeat: on SmolLM2's rows level 0 writes 0.3 % (16x) to 0.8 % (64x) less than levels 1-9,
 * more than twice as fast. Only text that repeats itself literally gains from a search.
 */
const DEFAULT_LEVELS: Readonly<Record<EntropyMethod, number>> = { none: 0, deflate: 0, zstd: 3 };

const MIN_LEVELS: Readonly<Record<EntropyMethod, number>> = { none: 0, deflate: 0, zstd: 1 };
const MAX_LEVELS: Readonly<Record<EntropyMethod, number>> = { none: 0, deflate: 9, zstd: 19 };
const HEADER_BYTES = 4;
const STORED_FLAG = 0x8000_0000;
/** A block never needs a longer reach than itself; a decoder refuses frames that ask for more memory. */
const ZSTD_WINDOW_LOG = 16;

const deflate = promisify<Uint8Array, ZlibOptions, Buffer>(deflateRaw);
const zstd = promisify<Uint8Array, ZstdOptions, Buffer>(zstdCompress);

/** The method a file names. Throws KVTC_CODEC_UNKNOWN. */
export function entropyMethod(name: string): EntropyMethod {
  if (name === 'none' || name === 'deflate' || name === 'zstd') return name;
  throw new KvtcError('KVTC_CODEC_UNKNOWN', `entropy method ${name}: this build knows none, deflate and zstd`, {
    got: name,
  });
}

/** Most bytes `compressBlocks` can make of `packedBytes` bytes: readers bound what they accept by it. */
export function maxStoredBytes(packedBytes: number, method: EntropyMethod): number {
  return method === 'none' ? packedBytes : packedBytes + HEADER_BYTES * blockCount(packedBytes);
}

/**
 * Compresses a packed chunk. Blocks that would not shrink are stored, so the result is never longer than the input plus
 * 4 bytes a block. Same input, method and level → same bytes within one Node release; decoding does not depend on it.
 * Throws KVTC_OPTION_INVALID for a level the method does not have. Source: paper §3.3.
 */
export async function compressBlocks(packed: Uint8Array, options: EntropyOptions): Promise<Uint8Array> {
  const { method } = options;
  if (method === 'none') return packed;
  const level = checkedLevel(method, options.level);
  const blocks = splitBlocks(packed);
  const payloads = await Promise.all(
    blocks.map(async (block) => {
      const chunkSize = outputChunk(block.length);
      const coded = await (method === 'deflate'
        ? deflate(block, { ...deflateOptions(level), chunkSize })
        : zstd(block, { ...zstdOptions(level), chunkSize }));
      return coded.length < block.length ? coded : block;
    }),
  );
  const total = payloads.reduce((sum, payload) => sum + payload.length, HEADER_BYTES * payloads.length);
  const stored = new Uint8Array(total);
  const view = new DataView(stored.buffer);
  let offset = HEADER_BYTES * payloads.length;
  for (const [index, payload] of payloads.entries()) {
    const flag = payload === blocks[index] ? STORED_FLAG : 0;
    view.setUint32(HEADER_BYTES * index, (payload.length | flag) >>> 0, true);
    stored.set(payload, offset);
    offset += payload.length;
  }
  return stored;
}

/**
 * Undoes `compressBlocks`. `packedBytes` is known from the plan and bounds all memory: a block that inflates to more,
 * or to less, than its share is refused, and so are payloads with bytes left over.
 * Throws KVTC_CHUNK_MALFORMED.
 */
export async function decompressBlocks(
  stored: Uint8Array,
  packedBytes: number,
  method: EntropyMethod,
): Promise<Uint8Array> {
  if (method === 'none') {
    if (stored.length !== packedBytes) refuse('an unframed chunk', stored.length, packedBytes);
    return stored;
  }
  const blocks = readHeaders(stored, packedBytes);
  const packed = new Uint8Array(packedBytes);
  await Promise.all(
    blocks.map(async ({ payload, isStored, offsetBytes, lengthBytes }, index) => {
      if (isStored) packed.set(payload, offsetBytes);
      else packed.set(await expand(payload, lengthBytes, method, index), offsetBytes);
    }),
  );
  return packed;
}

interface StoredBlock {
  readonly payload: Uint8Array;
  readonly isStored: boolean;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

function readHeaders(stored: Uint8Array, packedBytes: number): StoredBlock[] {
  const count = blockCount(packedBytes);
  let offset = count * HEADER_BYTES;
  if (stored.length < offset) refuse('the block headers', stored.length, offset);
  const view = new DataView(stored.buffer, stored.byteOffset, stored.byteLength);
  const blocks: StoredBlock[] = [];
  for (let index = 0; index < count; index++) {
    const header = view.getUint32(index * HEADER_BYTES, true);
    const isStored = header >= STORED_FLAG;
    const length = isStored ? header - STORED_FLAG : header;
    const offsetBytes = index * BLOCK_BYTES;
    const lengthBytes = Math.min(BLOCK_BYTES, packedBytes - offsetBytes);
    if (isStored ? length !== lengthBytes : length >= lengthBytes || length === 0) {
      refuse(`${isStored ? 'stored' : 'compressed'} block ${index}`, length, lengthBytes);
    }
    if (length > stored.length - offset) refuse(`the payload of block ${index}`, stored.length - offset, length);
    blocks.push({ payload: stored.subarray(offset, offset + length), isStored, offsetBytes, lengthBytes });
    offset += length;
  }
  if (offset !== stored.length) refuse('the frame', stored.length, offset);
  return blocks;
}

function expand(payload: Uint8Array, lengthBytes: number, method: 'deflate' | 'zstd', index: number): Promise<Buffer> {
  const limits = { maxOutputLength: lengthBytes, chunkSize: outputChunk(lengthBytes), info: true };
  return new Promise((resolve, reject) => {
    // With `info` node hands back the engine as well, which knows how much of the payload it read.
    const done = (error: Error | null, result: unknown): void => {
      const { buffer, engine } = (result ?? {}) as { buffer?: Buffer; engine?: { bytesWritten: number } };
      if (error !== null || buffer?.length !== lengthBytes || engine?.bytesWritten !== payload.length) {
        reject(
          new KvtcError(
            'KVTC_CHUNK_MALFORMED',
            `${method} block ${index}: ${payload.length} bytes do not expand to exactly ${lengthBytes}`,
            { block: index, gotBytes: buffer?.length, expectedBytes: lengthBytes, readBytes: engine?.bytesWritten },
            { cause: error ?? undefined },
          ),
        );
      } else resolve(buffer);
    };
    if (method === 'deflate') inflateRaw(payload, limits, done);
    else {
      zstdDecompress(payload, { ...limits, params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG } }, done);
    }
  });
}

/** memLevel bounds the symbols that share one set of Huffman codes: 8 K at 7, 16 K at 8. */
function deflateOptions(level: number): ZlibOptions {
  return level === 0
    ? { level: 1, strategy: constants.Z_HUFFMAN_ONLY, memLevel: 7 }
    : { level, strategy: constants.Z_DEFAULT_STRATEGY, memLevel: 8 };
}

function zstdOptions(level: number): ZstdOptions {
  return {
    params: {
      [constants.ZSTD_c_compressionLevel]: level,
      [constants.ZSTD_c_windowLog]: ZSTD_WINDOW_LOG,
      [constants.ZSTD_c_contentSizeFlag]: 0,
    },
  };
}

function splitBlocks(packed: Uint8Array): Uint8Array[] {
  const blocks: Uint8Array[] = [];
  for (let offset = 0; offset < packed.length; offset += BLOCK_BYTES) {
    blocks.push(packed.subarray(offset, offset + BLOCK_BYTES));
  }
  return blocks;
}

function blockCount(packedBytes: number): number {
  invariant(Number.isSafeInteger(packedBytes) && packedBytes >= 0, `packed length ${packedBytes}`);
  return Math.ceil(packedBytes / BLOCK_BYTES);
}

/** One output buffer per block, with room to notice the end without a second one. */
function outputChunk(blockBytes: number): number {
  return blockBytes + 64;
}

function checkedLevel(method: EntropyMethod, level = DEFAULT_LEVELS[method]): number {
  if (!Number.isInteger(level) || level < MIN_LEVELS[method] || level > MAX_LEVELS[method]) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `${method} level ${level}: expected an integer ${MIN_LEVELS[method]}-${MAX_LEVELS[method]}`,
      {
        method,
        level,
      },
    );
  }
  return level;
}

function refuse(what: string, gotBytes: number, expectedBytes: number): never {
  throw new KvtcError('KVTC_CHUNK_MALFORMED', `${what}: got ${gotBytes} bytes, expected ${expectedBytes}`, {
    gotBytes,
    expectedBytes,
  });
}
