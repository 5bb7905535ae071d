import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { isKvtcError } from '../src/base/errors.ts';
import { unpackFamily } from '../src/codec/wtc/family.ts';
import { createWtcPlan } from '../src/codec/wtc/plan.ts';
import { decodeWtcChunk } from '../src/codec/wtc/wtc-codec.ts';
import { createChunkDecoder } from '../src/cache/chunk-coder.ts';
import { restoreLayers } from '../src/cache/restore.ts';
import { openTransforms } from '../src/cache/transforms.ts';
import { openContainer, verifyContainer } from '../src/container/reader.ts';
import type { Container } from '../src/container/types.ts';
import { openReferenceBackend } from '../src/linalg/reference.ts';
import { openProfile, verifyProfile } from '../src/profile/open-profile.ts';
import type { WtcProfile } from '../src/profile/profile.ts';
import type { ContentHashes } from './content-hashes.ts';
import { contentHashes } from './content-hashes.ts';
import { readTiny, tinyBytes } from './tiny-container.ts';

interface Case {
  readonly name: string;
  readonly scales: readonly number[];
  readonly parameters: { readonly stepIndex: number; readonly rank: number; readonly cut: number };
  readonly tokens: number;
  readonly tokenClasses: readonly number[];
  readonly chunk: string;
  readonly sha256: string;
}

const folder = join(import.meta.dirname, 'golden', 'wtc');
const reference = join(import.meta.dirname, '..', 'reference', 'decode.py');
const decoder = join(import.meta.dirname, '..', 'reference', 'wtc.py');
const familyPath = join(folder, 'family.f32');
const packed = new Float32Array(new Uint8Array(await readFile(familyPath)).buffer);
const cases = JSON.parse(await readFile(join(folder, 'cases.json'), 'utf8')) as Case[];

test('there are golden chunks of the codec wtc', () => {
  assert.ok(cases.length >= 6);
});

async function byReference(one: Case): Promise<{ sha256: string; tokenClasses: number[] }> {
  const scratch = await mkdtemp(join(tmpdir(), 'kvtc-wtc-'));
  try {
    const path = join(scratch, 'case.json');
    await writeFile(path, JSON.stringify(one));
    const { stdout } = await promisify(execFile)('python3', [decoder, familyPath, path]);
    return JSON.parse(stdout) as { sha256: string; tokenClasses: number[] };
  } finally {
    await rm(scratch, { recursive: true });
  }
}

for (const one of cases) {
  const plan = createWtcPlan(one.parameters, {
    scales: Int16Array.from(one.scales),
    family: unpackFamily(packed, 'golden'),
  });

  test(`the golden chunk "${one.name}" decodes to what it always did`, () => {
    const out = new Float32Array(one.tokens * plan.rank);
    const classes = decodeWtcChunk(Buffer.from(one.chunk, 'hex'), one.tokens, plan, out);
    assert.deepEqual([...classes], one.tokenClasses);
    assert.equal(createHash('sha256').update(new Uint8Array(out.buffer)).digest('hex'), one.sha256);
  });

  test(`the reference decoder agrees on "${one.name}"`, async () => {
    assert.deepEqual(await byReference(one), { sha256: one.sha256, tokenClasses: one.tokenClasses });
  });
}

test('product and reference decoder refuse the same damaged chunk', async () => {
  const one = cases[1] as Case;
  const chunk = `${one.chunk.slice(0, -4)}${one.chunk.endsWith('0000') ? 'ffff' : '0000'}`;
  const plan = createWtcPlan(one.parameters, {
    scales: Int16Array.from(one.scales),
    family: unpackFamily(packed, 'golden'),
  });
  const out = new Float32Array(one.tokens * plan.rank);
  assert.throws(
    () => decodeWtcChunk(Buffer.from(chunk, 'hex'), one.tokens, plan, out),
    (error) => isKvtcError(error, 'KVTC_CHUNK_MALFORMED'),
  );
  await assert.rejects(byReference({ ...one, chunk }), (error: { code?: number }) => error.code === 3);
});

interface Manifest {
  readonly profile: { readonly name: string; readonly id: string; readonly sha256: string };
  readonly files: Readonly<Record<string, { readonly sha256: string; readonly content: ContentHashes }>>;
}

const manifest = JSON.parse(await readFile(join(folder, 'manifest.json'), 'utf8')) as Manifest;
const profilePath = join(folder, manifest.profile.name);
const sha256 = async (path: string): Promise<string> =>
  createHash('sha256')
    .update(await readFile(path))
    .digest('hex');

async function withGolden(
  name: string,
  use: (container: Container, profile: WtcProfile) => Promise<void>,
): Promise<void> {
  const profile = await openProfile(profilePath);
  const container = await openContainer(join(folder, name));
  try {
    assert.ok(profile.codec === 'wtc');
    await use(container, profile);
  } finally {
    await container.close();
    await profile.close();
  }
}

test('the golden profile of wtc opens, unchanged', async () => {
  assert.equal(await sha256(profilePath), manifest.profile.sha256);
  await verifyProfile(profilePath);
  const profile = await openProfile(profilePath);
  assert.equal(profile.id, manifest.profile.id);
  await profile.close();
});

for (const [name, { sha256: expected, content }] of Object.entries(manifest.files)) {
  const path = join(folder, name);

  test(`the golden file ${name} decodes to what it always did, in product and reference decoder`, async () => {
    assert.equal(await sha256(path), expected);
    await verifyContainer(path);
    await withGolden(name, async (container, profile) => {
      assert.equal(container.header.codec, 'wtc');
      assert.equal(container.header.profileId, profile.id);
      assert.deepEqual(await contentHashes(container, profile), content);
      const again = await tinyBytes(await readTiny(container));
      assert.equal(createHash('sha256').update(again).digest('hex'), expected);
      const words = [reference, 'chunks', path, '--profile', profilePath];
      const { stdout } = await promisify(execFile)('python3', words);
      assert.deepEqual(JSON.parse(stdout), { header: container.header, ...content });
    });
  });

  test(`rows of the golden file ${name} come back through the product`, async () => {
    await withGolden(name, async (container, profile) => {
      const backend = openReferenceBackend();
      const transforms = openTransforms(profile, backend, { precision: 'f32' });
      try {
        const { layers } = profile.model.geometry;
        const rows = await restoreLayers(container, transforms, { startLayer: 0, endLayer: layers });
        assert.ok(new Uint16Array(rows.key.buffer).some((half) => half !== 0));
      } finally {
        transforms.close();
        backend.close();
      }
    });
  });
}

test('a reader without the codec refuses the file by the name of the codec', async () => {
  await withGolden('finer-window.kvtc', async ({ header }, profile) => {
    assert.throws(
      () => createChunkDecoder({ ...header, codec: 'wtc-of-tomorrow' }, profile),
      (error) => isKvtcError(error, 'KVTC_CODEC_UNKNOWN') && error.message.includes('wtc-of-tomorrow'),
    );
    const paper = await openProfile(join(folder, '..', 'v1', 'yarn.profile.safetensors'));
    assert.throws(
      () => createChunkDecoder(header, paper),
      (error) => isKvtcError(error, 'KVTC_PROFILE_MISMATCH') && /\bwtc\b/u.test(error.message),
    );
    await paper.close();
  });
});
