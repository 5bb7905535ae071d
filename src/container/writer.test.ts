import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, open, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { TINY_HEADER, tinyBytes, tinyContent, writeTiny } from '../../test/tiny-container.ts';
import { isKvtcError } from '../base/errors.ts';
import { verifyContainer } from './reader.ts';
import { fileTarget, memoryTarget } from './target.ts';
import type { ContainerHeader, ContainerTarget } from './types.ts';
import { createContainerWriter } from './writer.ts';

const content = tinyContent();

async function withFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'kvtc-writer-'));
  try {
    await work(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

test('shows a file only when it is finished, and overwrites what an interrupted run left', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    await writeFile(`${path}.part`, new Uint8Array(1_000_000).fill(7));
    const writer = createContainerWriter(path, content.header);
    for (const { stream, rangeIndex, rows } of content.exact) await writer.writeExactRows(stream, rangeIndex, rows);
    assert.deepEqual(await readdir(folder), ['a.kvtc.part']);
    await writer.abort();
    assert.deepEqual(await readdir(folder), [], 'abort leaves nothing');
    await writeFile(`${path}.part`, new Uint8Array(1_000_000).fill(7));
    await writeTiny(path, content);
    assert.deepEqual(await readdir(folder), ['a.kvtc']);
    await verifyContainer(path);
  });
});

test('what stands in the partial file before finish is no container', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    const writer = createContainerWriter(path, content.header);
    for (const { stream, rangeIndex, rows } of content.exact) await writer.writeExactRows(stream, rangeIndex, rows);
    for (const { stored, ...chunk } of content.chunks) await writer.writeChunk(chunk, stored);
    await assert.rejects(verifyContainer(`${path}.part`), (error) => isKvtcError(error, 'KVTC_CONTAINER_MAGIC'));
    await writer.abort();
  });
});

test('an older file stays whole when its replacement fails', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    await writeTiny(path, content);
    const target = failing(fileTarget(path), 3);
    await assert.rejects(writeTiny(target, tinyContent(TINY_HEADER, 9)), (e) => isKvtcError(e, 'KVTC_WRITE_FAILED'));
    assert.deepEqual(await readdir(folder), ['a.kvtc']);
    await verifyContainer(path);
  });
});

/** Passes writes on until the given one, which fails as a full disk does. */
function failing(target: ContainerTarget, failAt: number): ContainerTarget {
  let writes = 0;
  return {
    write: async (bytes, offsetBytes) => {
      if (writes++ === failAt) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
      await target.write(bytes, offsetBytes);
    },
    commit: (byteLength) => target.commit(byteLength),
    discard: () => target.discard(),
  };
}

test('a failure of any write leaves no file and gives KVTC_WRITE_FAILED with its cause', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    let failed = 0;
    for (let failAt = 0; ; failAt++) {
      let finished = false;
      try {
        await writeTiny(failing(fileTarget(path), failAt), content);
        finished = true;
      } catch (error) {
        assert.ok(isKvtcError(error, 'KVTC_WRITE_FAILED'), String(error));
        assert.match(String((error.cause as Error).message), /ENOSPC/);
        assert.deepEqual(await readdir(folder), []);
        failed++;
      }
      if (finished) break;
    }
    assert.ok(failed > 20, `${failed} writes were made to fail`);
    await verifyContainer(path);
  });
});

test('a failing commit leaves no file', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    await mkdir(join(path, 'occupied'), { recursive: true }); // a rename onto this folder fails
    await assert.rejects(writeTiny(path, content), (error) => isKvtcError(error, 'KVTC_WRITE_FAILED'));
    assert.deepEqual(await readdir(folder), ['a.kvtc']);
  });
});

test('a folder that does not exist gives KVTC_WRITE_FAILED', async () => {
  await withFolder(async (folder) => {
    const write = writeTiny(join(folder, 'nowhere', 'a.kvtc'), content);
    await assert.rejects(write, (error) => isKvtcError(error, 'KVTC_WRITE_FAILED'));
  });
});

test('a device without space gives KVTC_WRITE_FAILED', async (context) => {
  const full = await stat('/dev/full').catch(() => null);
  if (full === null) return context.skip('no /dev/full on this platform');
  const handle = await open('/dev/full', 'r+');
  const target: ContainerTarget = {
    write: async (bytes) => void (await handle.write(bytes)),
    commit: async () => undefined,
    discard: () => handle.close(),
  };
  await assert.rejects(writeTiny(target, content), (error) => isKvtcError(error, 'KVTC_WRITE_FAILED'));
});

test('after a failed write every further call gives the same error', async () => {
  const writer = createContainerWriter(failing(memoryTarget(), 0), content.header);
  const failed = (error: unknown): boolean => isKvtcError(error, 'KVTC_WRITE_FAILED');
  const [first, second] = content.exact;
  assert.ok(first && second);
  await assert.rejects(writer.writeExactRows(first.stream, first.rangeIndex, first.rows), failed);
  await assert.rejects(writer.writeExactRows(second.stream, second.rangeIndex, second.rows), failed);
  await assert.rejects(writer.finish(), failed);
});

test('refuses a header that the format cannot hold', () => {
  const cases: Partial<ContainerHeader>[] = [
    { tokenCount: 0 },
    { tokenCount: 2 ** 31 },
    { chunkTokens: 1.5 },
    { codec: 'Paper Codec' },
    { profileId: 'AB'.repeat(32) },
    { exactRanges: [{ startToken: 3, endToken: 3 }] },
    { exactRanges: [{ startToken: 0, endToken: 10 }] },
    {
      exactRanges: [
        { startToken: 0, endToken: 2 },
        { startToken: 2, endToken: 3 },
      ],
    },
    { elementTypes: { key: 'q8_0', value: 'f16' } },
    { codecParameters: { step: Number.NaN } },
    { codecParameters: { note: 'x'.repeat(1 << 20) } },
    { model: { ...TINY_HEADER.model, rope: { ...TINY_HEADER.model.rope, dims: 6 } } },
    { model: { ...TINY_HEADER.model, rope: { ...TINY_HEADER.model.rope, frequencyFactors: [1] } } },
  ];
  for (const change of cases) {
    const start = (): unknown => createContainerWriter(memoryTarget(), { ...TINY_HEADER, ...change });
    assert.throws(start, (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'), JSON.stringify(change).slice(0, 200));
  }
});

test('refuses token ids and positions of the wrong count or below zero', () => {
  const writer = createContainerWriter(memoryTarget(), TINY_HEADER);
  const invalid = (error: unknown): boolean => isKvtcError(error, 'KVTC_OPTION_INVALID');
  assert.throws(() => writer.writeTokens(new Int32Array(8)), invalid);
  assert.throws(() => writer.writePositions(new Int32Array(9).fill(-1)), invalid);
});

test('refuses chunks and exact rows out of order, missing or of the wrong length', async () => {
  const chunk = { stream: 'key', startToken: 1, endToken: 4, packedBytes: 1 } as const;
  const bytes = Uint8Array.of(1);
  const start = (): ReturnType<typeof createContainerWriter> => createContainerWriter(memoryTarget(), TINY_HEADER);
  await assert.rejects(start().writeChunk({ ...chunk, startToken: 0 }, bytes), /expected/);
  await assert.rejects(start().writeChunk({ ...chunk, endToken: 5 }, bytes), /longer than 3 tokens/);
  await assert.rejects(start().writeChunk({ ...chunk, startToken: 4, endToken: 6 }, bytes), /begins where 1/);
  const writer = start();
  await writer.writeChunk({ ...chunk, stream: 'value' }, bytes);
  await assert.rejects(writer.writeChunk(chunk, bytes), /out of order/);
  await assert.rejects(start().writeExactRows('value', 0, new Uint8Array(16)), /file order/);
  await assert.rejects(start().writeExactRows('key', 0, new Uint8Array(15)), /15 bytes/);
  await assert.rejects(start().finish(), /writePositions/);
});

test('calls need not be awaited one by one', async () => {
  const target = memoryTarget();
  const writer = createContainerWriter(target, content.header);
  const calls = [
    ...content.exact.map(({ stream, rangeIndex, rows }) => writer.writeExactRows(stream, rangeIndex, rows)),
    ...content.chunks.map(({ stored, ...chunk }) => writer.writeChunk(chunk, stored)),
  ];
  writer.writePositions(content.positions);
  if (content.tokens) writer.writeTokens(content.tokens);
  await Promise.all(calls);
  await writer.finish();
  assert.deepEqual(target.bytes(), await tinyBytes(content));
});

test('a process killed while writing leaves only a partial file, which the next run overwrites', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'a.kvtc');
    const script = `
      import { createContainerWriter } from ${JSON.stringify(new URL('writer.ts', import.meta.url).href)};
      const [header, rows] = JSON.parse(process.argv[1]);
      const writer = createContainerWriter(process.argv[2], header);
      await writer.writeExactRows('key', 0, Uint8Array.from(rows));
      process.kill(process.pid, 'SIGKILL');
      await new Promise(() => setInterval(() => {}, 1000));`;
    const input = JSON.stringify([content.header, [...(content.exact[0]?.rows ?? [])]]);
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, input, path], { stdio: 'inherit' });
    const [code] = (await once(child, 'exit')) as [number | null];
    assert.notEqual(code, 0);
    assert.deepEqual(await readdir(folder), ['a.kvtc.part']);
    await writeTiny(path, content);
    assert.deepEqual(await readdir(folder), ['a.kvtc']);
    await verifyContainer(path);
  });
});
