import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { readTiny, TINY_HEADER, tinyBytes, tinyContent, writeTiny } from '../../test/tiny-container.ts';
import { isKvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import { canonicalJson, parseCanonicalJson } from './canonical-json.ts';
import { openContainer, verifyContainer } from './reader.ts';
import { memoryTarget } from './target.ts';
import type { ContainerHeader } from './types.ts';
import { createContainerWriter } from './writer.ts';

async function withFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'kvtc-container-'));
  try {
    await work(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

test('gives back header, tokens, positions, exact rows and chunks from memory and from a file', async () => {
  await withFolder(async (folder) => {
    for (const withTokens of [true, false]) {
      const content = tinyContent(TINY_HEADER, 3, withTokens);
      const path = join(folder, 'a.kvtc');
      await writeTiny(path, content);
      const bytes = await tinyBytes(content);
      assert.deepEqual(new Uint8Array(await readFile(path)), bytes, 'file and memory hold the same bytes');
      for (const source of [path, bytes]) {
        const container = await openContainer(source);
        assert.deepEqual(await readTiny(container), content);
        await container.verify();
        await container.close();
      }
    }
  });
});

test('gives back any layout of exact ranges, chunk lengths, layers and element types', async () => {
  const shape = fc.record({
    tokenCount: fc.integer({ min: 1, max: 40 }),
    chunkTokens: fc.integer({ min: 1, max: 12 }),
    cuts: fc.uniqueArray(fc.nat(40), { maxLength: 8 }),
    layers: fc.integer({ min: 1, max: 4 }),
    key: fc.constantFrom('f32', 'f16', 'bf16', 'q8_0'),
    seed: fc.nat(1e6),
    withTokens: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(shape, async ({ tokenCount, chunkTokens, cuts, layers, key, seed, withTokens }) => {
      const edges = cuts.filter((cut) => cut <= tokenCount).toSorted((a, b) => a - b);
      const exactRanges = [];
      for (let index = 0; index + 1 < edges.length; index += 2) {
        exactRanges.push({ startToken: edges[index] as number, endToken: edges[index + 1] as number });
      }
      const header: ContainerHeader = {
        ...TINY_HEADER,
        model: { ...TINY_HEADER.model, geometry: { layers, kvHeads: 8, keyHeadDim: 4, valueHeadDim: 3 } },
        tokenCount,
        chunkTokens,
        elementTypes: { key, value: 'bf16' },
        exactRanges,
      };
      const content = tinyContent(header, seed, withTokens);
      const container = await openContainer(await tinyBytes(content));
      assert.deepEqual(await readTiny(container), content);
      await container.verify();
    }),
    { numRuns: 60 },
  );
});

test('writes the same bytes for the same content', async () => {
  assert.deepEqual(await tinyBytes(), await tinyBytes());
});

test('reads a layer range of exact rows and checks it alone', async () => {
  const content = tinyContent();
  const bytes = (await tinyBytes(content)).slice();
  const container = await openContainer(bytes);
  const whole = await container.readExactRows('key', 1);
  const layerBytes = whole.length / 2;
  const second = { startLayer: 1, endLayer: 2 };
  assert.deepEqual(await container.readExactRows('key', 1, second), whole.subarray(layerBytes));
  const part = container
    .parts()
    .find((p) => p.kind === 'exact-rows' && p.stream === 'key' && p.tokens?.startToken === 6);
  assert.ok(part);
  bytes[part.offsetBytes] ^= 1; // first layer
  assert.deepEqual(await container.readExactRows('key', 1, second), content.exact[2]?.rows.subarray(layerBytes));
  await assert.rejects(container.readExactRows('key', 1), (e) => isKvtcError(e, 'KVTC_CONTAINER_CHECKSUM'));
});

test('takes exact rows layer by layer', async () => {
  const content = tinyContent();
  const target = memoryTarget();
  const writer = createContainerWriter(target, content.header);
  for (const { stream, rangeIndex, rows } of content.exact) {
    const half = rows.length / 2;
    await writer.writeExactRows(stream, rangeIndex, rows.subarray(0, half), { startLayer: 0, endLayer: 1 });
    await writer.writeExactRows(stream, rangeIndex, rows.subarray(half), { startLayer: 1, endLayer: 2 });
  }
  for (const { stored, ...chunk } of content.chunks) await writer.writeChunk(chunk, stored);
  writer.writePositions(content.positions);
  if (content.tokens) writer.writeTokens(content.tokens);
  await writer.finish();
  assert.deepEqual(target.bytes(), await tinyBytes(content));
});

test('names every byte: parts are contiguous and sum to the file', async () => {
  const bytes = await tinyBytes();
  const { parts } = await verifyContainer(bytes);
  let at = 0;
  for (const part of parts) {
    assert.equal(part.offsetBytes, at);
    at += part.byteLength;
  }
  assert.equal(at, bytes.length);
  for (const stream of STREAMS) assert.ok(parts.some((part) => part.kind === 'chunk' && part.stream === stream));
});

test('detects every single flipped bit of a file', async () => {
  const bytes = (await tinyBytes()).slice();
  const codes = new Map<string, number>();
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const at = bit >> 3;
    bytes[at] = (bytes[at] as number) ^ (1 << (bit & 7));
    await assert.rejects(verifyContainer(bytes), (error) => {
      assert.ok(isKvtcError(error) && error.code.startsWith('KVTC_CONTAINER_'), `bit ${bit}: ${String(error)}`);
      codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
      return true;
    });
    bytes[at] = (bytes[at] as number) ^ (1 << (bit & 7));
  }
  await verifyContainer(bytes);
  assert.ok((codes.get('KVTC_CONTAINER_CHECKSUM') ?? 0) > 1000);
  assert.ok((codes.get('KVTC_CONTAINER_RESERVED') ?? 0) > 100, 'padding is checked');
});

test('detects every truncation and any appended byte', async () => {
  const bytes = await tinyBytes();
  for (let length = 0; length < bytes.length; length++) {
    const code = length === 0 ? 'KVTC_CONTAINER_MAGIC' : 'KVTC_CONTAINER_TRUNCATED';
    await assert.rejects(verifyContainer(bytes.subarray(0, length)), (error) => isKvtcError(error, code), `${length}`);
  }
  const longer = new Uint8Array(bytes.length + 1);
  longer.set(bytes);
  await assert.rejects(verifyContainer(longer), (error) => isKvtcError(error, 'KVTC_CONTAINER_MALFORMED'));
});

test('refuses a path that is no file', async () => {
  await withFolder(async (folder) => {
    const missing = (error: unknown): boolean => isKvtcError(error, 'KVTC_FILE_NOT_FOUND');
    await assert.rejects(openContainer(join(folder, 'nothing.kvtc')), missing);
    await assert.rejects(openContainer(folder), missing);
    await writeFile(join(folder, 'empty.kvtc'), '');
    const empty = openContainer(join(folder, 'empty.kvtc'));
    await assert.rejects(empty, (error) => isKvtcError(error, 'KVTC_CONTAINER_MAGIC'));
  });
});

test('honours limits given by the caller', async () => {
  const bytes = await tinyBytes();
  const limited = (error: unknown): boolean => isKvtcError(error, 'KVTC_CONTAINER_LIMIT');
  for (const limits of [
    { headerBytes: 100 },
    { sections: 5 },
    { tokens: 8 },
    { chunks: 5 },
    { chunkTokens: 2 },
    { packedChunkBytes: 1 },
    { storedChunkBytes: 1 },
    { exactLayerBytes: 7 },
  ]) {
    await assert.rejects(openContainer(bytes, { limits }), limited, JSON.stringify(limits));
  }
});

test('stops verifying when the signal fires', async () => {
  const bytes = await tinyBytes();
  const signal = AbortSignal.abort();
  await assert.rejects(verifyContainer(bytes, { signal }), (error) => isKvtcError(error, 'KVTC_ABORTED'));
});

test('canonical JSON has one text for each value', () => {
  const text = '{"":[],"a":{"x":1,"y":-1e-7},"b":[0.00001,1e+21,null,true,"\\"\\\\\\n\\u0001é\\ud800"],"é":{}}';
  const value = parseCanonicalJson(new TextEncoder().encode(text));
  assert.equal(canonicalJson(value), text);
  assert.equal(canonicalJson({ b: undefined, a: 1 }), '{"a":1}');
});

test('refuses JSON that is not canonical', () => {
  const deep = '['.repeat(40) + ']'.repeat(40);
  for (const text of [
    '{"b":1,"a":1}',
    '{"a":1,"a":1}',
    '[1.0]',
    '[-0]',
    '[ 1]',
    '[NaN]',
    '[1e400]',
    '',
    '[1]\n',
    deep,
  ]) {
    const parse = (): unknown => parseCanonicalJson(new TextEncoder().encode(text));
    assert.throws(parse, (error) => isKvtcError(error, 'KVTC_CONTAINER_MALFORMED'), text);
  }
  const notUtf8 = (): unknown => parseCanonicalJson(Uint8Array.of(0x22, 0xff, 0x22));
  assert.throws(notUtf8, (error) => isKvtcError(error, 'KVTC_CONTAINER_MALFORMED'));
});
