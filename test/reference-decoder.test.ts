// The decoder in reference/ was written from the pages of docs/format alone; it must agree with the product.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { openContainer } from '../src/container/reader.ts';
import { seededRandom } from '../src/base/random.ts';
import { contentHashes } from './content-hashes.ts';
import { tinyContent, TINY_HEADER, writeTiny } from './tiny-container.ts';
import { writeTinyPaper, writeTinyProfile } from './tiny-paper.ts';

const python = promisify(execFile);
const decoder = join(import.meta.dirname, '..', 'reference', 'decode.py');
const folder = await mkdtemp(join(tmpdir(), 'kvtc-reference-'));
after(() => rm(folder, { recursive: true }));

interface Verdict {
  readonly file: string;
  readonly ok: boolean;
  readonly decoded?: boolean;
  readonly code?: string;
}

/** `decode.py check`: exit status 3 only says that some file was refused. */
async function check(files: readonly string[]): Promise<Verdict[]> {
  const { stdout } = await python('python3', [decoder, 'check', ...files]).catch((error: unknown) => {
    if ((error as { code?: unknown }).code === 3) return error as { stdout: string };
    throw error;
  });
  const lines = stdout.trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as Verdict);
}

test('finds in files the product has just written exactly the codes and coefficients that the product finds', async () => {
  for (const [index, model] of (['factors', 'yarn'] as const).entries()) {
    const profile = await writeTinyProfile(join(folder, `${model}.safetensors`), model);
    for (const entropy of ['deflate', 'none'] as const) {
      const path = join(folder, `${model}-${entropy}.kvtc`);
      await writeTinyPaper(path, profile, {
        tokenCount: 75,
        sinks: 4,
        window: 9,
        chunkTokens: 32,
        entropy,
        elementTypes: { key: 'f16', value: 'bf16' },
        seed: 100 + index,
        firstPosition: 5,
        withTokens: index === 0,
      });
      const { stdout } = await python('python3', [decoder, 'chunks', path]);
      const container = await openContainer(path);
      const expected = await contentHashes(container);
      assert.ok(expected.chunks.length >= 4);
      assert.deepEqual(JSON.parse(stdout), { header: container.header, ...expected });
      await container.close();
    }
    await profile.close();
  }
});

test('accepts every golden file', async () => {
  const golden = join(import.meta.dirname, 'golden', 'v1');
  const { files } = JSON.parse(await readFile(join(golden, 'manifest.json'), 'utf8')) as { files: object };
  const verdicts = await check(Object.keys(files).map((name) => join(golden, name)));
  for (const { file, ok, decoded } of verdicts) {
    assert.ok(ok, file);
    assert.equal(decoded, !file.includes('zstd'), `${file}: only zstd is beyond Python's library`);
  }
  assert.equal(verdicts.length, Object.keys(files).length);
});

test('refuses every broken file with the code that the product gives', async () => {
  const hostile = join(import.meta.dirname, 'hostile');
  const manifest = JSON.parse(await readFile(join(hostile, 'manifest.json'), 'utf8')) as Record<string, string>;
  const verdicts = await check(Object.keys(manifest).map((name) => join(hostile, name)));
  const codes = verdicts.map(({ file, code }) => [file.slice(hostile.length + 1), code]);
  assert.deepEqual(Object.fromEntries(codes), manifest);
});

test('refuses zstd chunks by name', async () => {
  const path = join(import.meta.dirname, 'golden', 'v1', 'windowless-zstd.kvtc');
  await assert.rejects(python('python3', [decoder, 'chunks', path]), (error) => {
    assert.equal((error as { code?: unknown }).code, 3);
    assert.match((error as { stderr: string }).stderr, /^KVTC_CODEC_UNKNOWN: zstd/);
    return true;
  });
});

test('spells numbers and strings of the header as the product does', async () => {
  const random = seededRandom(5);
  const bits = new DataView(new ArrayBuffer(8));
  const numbers = [0, 1e21, 1e20, 123456789012345680000, 1e-6, 1e-7, 5e-324, Number.MAX_VALUE, -1.5, 2 ** 53, 0.1];
  while (numbers.length < 3000) {
    bits.setUint32(0, random.below(2 ** 32));
    bits.setUint32(4, random.below(2 ** 32));
    const value = bits.getFloat64(0);
    if (Number.isFinite(value)) numbers.push(value, Math.round(value % 1e9) / 2 ** random.below(30));
  }
  const strings = Array.from({ length: 300 }, () =>
    String.fromCharCode(...Array.from({ length: 6 }, () => random.below(random.below(2) === 0 ? 256 : 65536))),
  );
  strings.push('\u2028\u{1f600}\ud83d', '"\\/\b\f\n\r\t\u007f', '\ufeff');
  const members = Object.fromEntries(strings.map((text, index) => [text, index]));
  const numbersToKeep = numbers.map((value) => value + 0); // -0 has no canonical form of its own
  const path = join(folder, 'spelling.kvtc');
  await writeTiny(path, tinyContent({ ...TINY_HEADER, codecParameters: { numbers: numbersToKeep, strings, members } }));
  assert.deepEqual(await check([path]), [{ file: path, ok: true, decoded: false }]);
});
