import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ErrorCode } from '../src/base/errors.ts';
import { ERROR_KINDS, isKvtcError } from '../src/base/errors.ts';
import { openContainer } from '../src/container/reader.ts';
import { contentHashes } from './content-hashes.ts';

const folder = join(import.meta.dirname, 'hostile');
const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8')) as Record<string, ErrorCode>;

/** Opens, verifies and decodes a file as far as its codec is known here. */
async function readAll(source: string | Uint8Array): Promise<void> {
  const container = await openContainer(source);
  try {
    await container.verify();
    if (container.header.codec === 'kvtc-paper') await contentHashes(container);
  } finally {
    await container.close();
  }
}

test('the manifest names every broken file', async () => {
  const names = (await readdir(folder)).filter((name) => name !== 'manifest.json');
  assert.deepEqual(names.toSorted(), Object.keys(manifest).toSorted());
  assert.ok(names.length > 100, `${names.length} broken files`);
});

for (const [name, code] of Object.entries(manifest)) {
  test(`${name} is refused with ${code}, from a file and from memory`, async () => {
    assert.equal(ERROR_KINDS[code], 'input');
    const path = join(folder, name);
    for (const source of [path, await readFile(path)]) {
      await assert.rejects(readAll(source), (error) => {
        assert.ok(isKvtcError(error), String(error));
        assert.equal(error.code, code, error.message);
        return true;
      });
    }
  });
}
