import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { isKvtcError } from '../base/errors.ts';
import type { ErrorCode } from '../base/errors.ts';
import { f16ToF32, f32ToF16 } from '../base/half.ts';
import { openProfile, verifyProfile } from './open-profile.ts';
import type { ProfileContents } from './write-profile.ts';
import { rewriteProfile, writeProfile } from './write-profile.ts';
import { contents, matrix, point, stream } from '../../test/profile-contents.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-profile-'));
});
after(() => rm(folder, { recursive: true }));

const coded = (code: ErrorCode) => (error: unknown) => isKvtcError(error, code);

async function written(name: string, changes: Partial<ProfileContents> = {}): Promise<string> {
  const path = join(folder, `${name}.safetensors`);
  await writeProfile(path, { ...contents, ...changes });
  return path;
}

test('a written profile opens with everything it was given, the basis rounded to f16', async () => {
  const path = join(folder, 'whole.safetensors');
  const id = await writeProfile(path, contents);
  const profile = await openProfile(path);
  assert.ok(profile.codec === 'kvtc-paper');
  assert.equal(profile.id, id);
  assert.equal(profile.path, path);
  assert.deepEqual(profile.model, contents.model);
  assert.deepEqual(profile.rank, { key: 32, value: 48 });
  assert.deepEqual(profile.plans, contents.plans.toReversed(), 'plans come back by rising ratio');
  assert.deepEqual(profile.provenance, contents.provenance);
  assert.deepEqual(profile.quality, contents.quality);
  assert.equal(profile.byteLength, (await readFile(path)).length);
  for (const kind of ['key', 'value'] as const) {
    const { mean, variances, analysis, synthesis: basis } = profile.stream(kind);
    assert.equal(analysis, basis);
    assert.deepEqual(mean, contents.streams[kind].mean);
    assert.deepEqual(variances, contents.streams[kind].variances);
    const given = contents.streams[kind].basis;
    const rows = new Float32Array(3 * basis.columns);
    await basis.read(5, 8, rows);
    const expected = given.values.subarray(5 * basis.columns, 8 * basis.columns).map((v) => f16ToF32(f32ToF16(v)));
    assert.deepEqual(rows, expected);
  }
  await profile.close();
  await verifyProfile(path);
  assert.ok(!(await readdir(folder)).some((name) => name.endsWith('.part')));
});

test('the same contents give the same bytes', async () => {
  assert.deepEqual(await readFile(await written('once')), await readFile(await written('twice')));
});

test('a stranger finds the tensors by the 8-byte length and the JSON alone, and can recompute the id', async () => {
  const bytes = await readFile(await written('stranger'));
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  assert.equal(headerBytes % 8, 0);
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString());
  const [begin, end] = header['value.mean'].data_offsets;
  const data = bytes.subarray(8 + headerBytes);
  assert.equal(data.readFloatLE(begin), contents.streams.value.mean[0]);
  assert.equal(end - begin, 4 * 96);
  const id = createHash('sha256').update(`${header.__metadata__.model}\n`).update(data).digest('hex');
  assert.equal(header.__metadata__.id, id);
});

test("the format page's Python lines read what was written", async () => {
  const page = await readFile(new URL('../../docs/format/profile.md', import.meta.url), 'utf8');
  const program = /```python\n(.*?)```/su.exec(page)?.[1];
  assert.ok(program !== undefined);
  const path = await written('python');
  const { stdout } = await promisify(execFile)('python3', ['-c', program, path]);
  const norm = contents.streams.key.basis.values
    .subarray(0, 48)
    .reduce((sum, value) => sum + f16ToF32(f32ToF16(value)) ** 2, 0);
  const [first = '', second] = stdout.split('\n');
  assert.ok(first.startsWith('tiny 32 48 '));
  assert.ok(Math.abs(Number(first.split(' ')[3]) - norm) < 1e-9);
  assert.equal(second, '[8, 16]');
});

test('more quality points and plans keep id and tensors', async () => {
  const path = await written('grows');
  const before = await openProfile(path);
  const added = { ...point, ratio: 8, weights: 'as-is' as const };
  await rewriteProfile(path, { quality: [...before.quality, added], plans: contents.plans.slice(0, 1) });
  const after = await openProfile(path);
  assert.equal(after.id, before.id);
  assert.deepEqual(after.quality, [point, added]);
  assert.ok(after.codec === 'kvtc-paper');
  assert.deepEqual(after.plans, [contents.plans[0]]);
  assert.deepEqual(after.stream('key').mean, before.stream('key').mean);
  await Promise.all([before.close(), after.close()]);
  await verifyProfile(path);
});

test('the id changes with the model and with any tensor value', async () => {
  const ids = new Set<string>();
  const path = join(folder, 'ids.safetensors');
  ids.add(await writeProfile(path, contents));
  ids.add(await writeProfile(path, { ...contents, model: { ...contents.model, fingerprint: '00'.repeat(32) } }));
  const mean = Float32Array.from(contents.streams.key.mean);
  mean[3] = 9;
  ids.add(
    await writeProfile(path, { ...contents, streams: { ...contents.streams, key: { ...contents.streams.key, mean } } }),
  );
  assert.equal(ids.size, 3);
});

test('contents that could not be opened again are not written', async () => {
  const key = contents.streams.key;
  const nan = Float32Array.from(key.mean);
  nan[1] = Number.NaN;
  const large = matrix(32, 48, 1);
  large.values[100] = 1e6;
  const bad: Partial<ProfileContents>[] = [
    { streams: { ...contents.streams, key: { ...key, mean: nan } } },
    { streams: { ...contents.streams, key: { ...key, variances: key.variances.toReversed() } } },
    { streams: { ...contents.streams, key: { ...key, mean: key.mean.subarray(1) } } },
    { streams: { ...contents.streams, key: stream(24, 48, 1) } },
    { streams: { ...contents.streams, key: stream(64, 48, 1) } },
    { streams: { ...contents.streams, key: { ...key, basis: large } } },
    { plans: [contents.plans[0], contents.plans[0]] },
    { plans: [{ ...contents.plans[0], key: { rank: 48, groups: [] } }] },
    { model: { ...contents.model, fingerprint: 'xyz' } },
    { provenance: { ...contents.provenance, rows: -1 } },
    { quality: [{ ...point, klNats: Number.NaN }] },
  ];
  const path = join(folder, 'never.safetensors');
  for (const changes of bad) {
    await assert.rejects(writeProfile(path, { ...contents, ...changes }), coded('KVTC_OPTION_INVALID'));
  }
  await assert.rejects(readFile(path));
  assert.ok(!(await readdir(folder)).some((name) => name.startsWith('never')));
});

test('a failing write leaves the old file and no partial one', async () => {
  const path = await written('kept');
  const old = await readFile(path);
  const failing = { ...contents.streams.key.basis, read: () => Promise.reject(new Error('gone')) };
  const streams = { ...contents.streams, key: { ...contents.streams.key, basis: failing } };
  await assert.rejects(writeProfile(path, { ...contents, streams }), coded('KVTC_WRITE_FAILED'));
  assert.deepEqual(await readFile(path), old);
  await assert.rejects(writeProfile(join(folder, 'no', 'such.safetensors'), contents), coded('KVTC_WRITE_FAILED'));
  assert.ok(!(await readdir(folder)).includes('kept.safetensors.part'));
});

test('a missing file is named as such and a folder is no profile', async () => {
  await assert.rejects(openProfile(folder), coded('KVTC_PROFILE_MALFORMED'));
  await assert.rejects(openProfile(join(folder, 'absent')), coded('KVTC_FILE_NOT_FOUND'));
});
