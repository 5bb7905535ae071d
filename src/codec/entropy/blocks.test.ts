import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { EntropyMethod } from './blocks.ts';
import { BLOCK_BYTES, compressBlocks, decompressBlocks, maxStoredBytes } from './blocks.ts';

const METHODS: readonly EntropyMethod[] = ['none', 'deflate', 'zstd'];

function noise(length: number, distinct: number): Uint8Array {
  const random = seededRandom(length);
  return Uint8Array.from({ length }, () => random.below(distinct));
}

function frame(blocks: readonly { payload: Uint8Array; stored?: boolean }[]): Uint8Array {
  const bytes = Buffer.concat([Buffer.alloc(4 * blocks.length), ...blocks.map(({ payload }) => payload)]);
  for (const [index, { payload, stored = false }] of blocks.entries()) {
    bytes.writeUInt32LE((payload.length | (stored ? 0x8000_0000 : 0)) >>> 0, 4 * index);
  }
  return bytes;
}

const malformed = (error: unknown): boolean => isKvtcError(error, 'KVTC_CHUNK_MALFORMED');

for (const method of METHODS) {
  test(`${method} gives back any bytes and stays within its bound`, async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), fc.integer({ min: 1, max: 9 }), async (packed, level) => {
        const stored = await compressBlocks(packed, { method, level });
        assert.ok(stored.length <= maxStoredBytes(packed.length, method));
        assert.deepEqual(await decompressBlocks(stored, packed.length, method), packed);
      }),
      { numRuns: 60 },
    );
  });

  test(`${method} gives back chunks at and around block boundaries`, async () => {
    for (const length of [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 5]) {
      const packed = noise(length, 5);
      const stored = await compressBlocks(packed, { method });
      assert.deepEqual(await decompressBlocks(stored, length, method), packed);
    }
  });

  test(`${method} refuses every truncation and every appended byte`, async () => {
    const packed = noise(BLOCK_BYTES + 700, 3);
    const stored = await compressBlocks(packed, { method });
    for (const length of [0, 3, 4, 7, 8, 9, stored.length - 1]) {
      await assert.rejects(decompressBlocks(stored.subarray(0, length), packed.length, method), malformed);
    }
    await assert.rejects(decompressBlocks(Buffer.concat([stored, Buffer.alloc(1)]), packed.length, method), malformed);
  });
}

test('a block that does not shrink is stored and flagged', async () => {
  const packed = noise(BLOCK_BYTES, 256);
  const stored = await compressBlocks(packed, { method: 'deflate' });
  assert.equal(stored.length, BLOCK_BYTES + 4);
  assert.equal(Buffer.from(stored).readUInt32LE(0), 0x8000_0000 + BLOCK_BYTES);
});

test('blocks are raw DEFLATE streams on their own', async () => {
  const packed = noise(BLOCK_BYTES + 100, 3);
  const stored = Buffer.from(await compressBlocks(packed, { method: 'deflate', level: 6 }));
  assert.equal(stored.readUInt32LE(0), deflateRawSync(packed.subarray(0, BLOCK_BYTES), { level: 6 }).length);
  assert.equal(stored.readUInt32LE(4), deflateRawSync(packed.subarray(BLOCK_BYTES), { level: 6 }).length);
});

test('a bomb is refused without inflating past the block', async () => {
  const bomb = Buffer.alloc(50_000_000);
  for (const [method, payload] of [
    ['deflate', deflateRawSync(bomb)],
    ['zstd', zstdCompressSync(bomb)],
  ] as const) {
    assert.ok(payload.length < BLOCK_BYTES);
    await assert.rejects(decompressBlocks(frame([{ payload }]), BLOCK_BYTES, method), malformed);
  }
});

test('bytes after the end of a compressed block are refused', async () => {
  const packed = noise(5000, 3);
  for (const [method, payload] of [
    ['deflate', deflateRawSync(packed)],
    ['zstd', zstdCompressSync(packed)],
  ] as const) {
    assert.deepEqual(await decompressBlocks(frame([{ payload }]), packed.length, method), packed);
    const padded = Buffer.concat([payload, Buffer.from([0])]);
    await assert.rejects(decompressBlocks(frame([{ payload: padded }]), packed.length, method), malformed);
    await assert.rejects(decompressBlocks(frame([{ payload }]), packed.length + 1, method), malformed);
    await assert.rejects(decompressBlocks(frame([{ payload }]), packed.length - 1, method), malformed);
  }
});

test('two zstd frames in one block are refused even when their sizes add up', async () => {
  const packed = noise(4000, 3);
  const payload = Buffer.concat([zstdCompressSync(packed.subarray(0, 2000)), zstdCompressSync(packed.subarray(2000))]);
  const result = decompressBlocks(frame([{ payload }]), packed.length, 'zstd');
  await assert.rejects(result, malformed);
});

test('a stored block of the wrong length and an empty compressed block are refused', async () => {
  const payload = noise(99, 256);
  await assert.rejects(decompressBlocks(frame([{ payload, stored: true }]), 100, 'deflate'), malformed);
  await assert.rejects(decompressBlocks(frame([{ payload: new Uint8Array(0) }]), 100, 'deflate'), malformed);
});

test('a level the method does not have is refused', async () => {
  for (const [method, level] of [
    ['deflate', -1],
    ['deflate', 10],
    ['deflate', 2.5],
    ['deflate', Number.NaN],
    ['zstd', 0],
    ['zstd', 20],
  ] as const) {
    await assert.rejects(compressBlocks(new Uint8Array(9), { method, level }), (error) =>
      isKvtcError(error, 'KVTC_OPTION_INVALID'),
    );
  }
});

test('DEFLATE level 0 codes symbols without looking for repeats, level 1 finds them', async () => {
  const packed = Buffer.concat(Array.from({ length: 50 }, () => noise(1000, 256)));
  const huffman = await compressBlocks(packed, { method: 'deflate', level: 0 });
  const searched = await compressBlocks(packed, { method: 'deflate', level: 1 });
  assert.ok(huffman.length > 40_000 && searched.length < 5000);
  const skewed = noise(50_000, 3);
  assert.ok((await compressBlocks(skewed, { method: 'deflate' })).length < 13_000);
});

test('random damage is either refused or gives exactly the expected number of bytes', async () => {
  const packed = noise(9000, 4);
  for (const method of ['deflate', 'zstd'] as const) {
    const stored = await compressBlocks(packed, { method });
    await fc.assert(
      fc.asyncProperty(fc.nat(stored.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
        const broken = Uint8Array.from(stored);
        broken[at]! ^= flip;
        try {
          assert.equal((await decompressBlocks(broken, packed.length, method)).length, packed.length);
        } catch (error) {
          assert.ok(malformed(error), String(error));
        }
      }),
      { numRuns: 80 },
    );
  }
});
