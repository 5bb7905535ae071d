import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openContainer, verifyContainer } from '../src/container/reader.ts';
import { openProfile, verifyProfile } from '../src/profile/open-profile.ts';
import type { ContentHashes } from './content-hashes.ts';
import { contentHashes } from './content-hashes.ts';
import { readTiny, tinyBytes } from './tiny-container.ts';

interface GoldenManifest {
  readonly formatVersion: string;
  readonly profiles: Readonly<Record<string, { readonly id: string; readonly sha256: string }>>;
  readonly files: Readonly<
    Record<string, { readonly profile: string; readonly sha256: string; readonly content: ContentHashes }>
  >;
}

const folder = join(import.meta.dirname, 'golden', 'v1');
const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8')) as GoldenManifest;

async function sha256(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
}

test('the manifest of format version 1 names every file of its folder', async () => {
  const names = (await readdir(folder)).filter((name) => name !== 'manifest.json');
  assert.deepEqual(names.toSorted(), [...Object.keys(manifest.files), ...Object.keys(manifest.profiles)].toSorted());
  assert.ok(Object.keys(manifest.files).length >= 6);
});

for (const [name, { id, sha256: expected }] of Object.entries(manifest.profiles)) {
  test(`golden profile ${name} opens, unchanged`, async () => {
    const path = join(folder, name);
    assert.equal(await sha256(path), expected);
    await verifyProfile(path);
    const profile = await openProfile(path);
    assert.equal(profile.id, id);
    await profile.close();
  });
}

for (const [name, { profile, sha256: expected, content }] of Object.entries(manifest.files)) {
  test(`golden file ${name} decodes to what it always did`, async () => {
    const path = join(folder, name);
    assert.equal(await sha256(path), expected);
    await verifyContainer(path);
    const container = await openContainer(path);
    assert.equal(container.header.profileId, manifest.profiles[profile]?.id);
    assert.deepEqual(await contentHashes(container), content);
    // There is one encoding only: writing what was read gives the file again.
    const again = await tinyBytes(await readTiny(container));
    assert.equal(createHash('sha256').update(again).digest('hex'), expected);
    await container.close();
  });
}
