import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import type { ErrorCode } from '../base/errors.ts';
import { f16ToF32, f32ToF16 } from '../base/half.ts';
import { seededRandom } from '../base/random.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import { openProfile, verifyProfile } from './open-profile.ts';
import type { QualityPoint, StreamBasis } from './profile.ts';
import type { ProfileContents } from './write-profile.ts';
import { rewriteProfile, writeProfile } from './write-profile.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-profile-'));
});
after(() => rm(folder, { recursive: true }));

const coded = (code: ErrorCode) => (error: unknown) => isKvtcError(error, code);

function matrix(rows: number, columns: number, seed: number): MatrixSource & { values: Float32Array } {
  const random = seededRandom(seed);
  const values = Float32Array.from({ length: rows * columns }, () => random.normal() / Math.sqrt(columns));
  return {
    rows,
    columns,
    values,
    read: async (start, end, out) => out.set(values.subarray(start * columns, end * columns)),
  };
}

function stream(rank: number, width: number, seed: number): StreamBasis & { basis: { values: Float32Array } } {
  const random = seededRandom(seed + 1);
  return {
    mean: Float32Array.from({ length: width }, () => random.normal()),
    variances: Float32Array.from({ length: rank }, (_, i) => 1 / (1 + i)),
    basis: matrix(rank, width, seed),
  };
}

const point: QualityPoint = {
  ratio: 16,
  paperRatio: 18.25,
  effectiveRatio: 10.5,
  klNats: 0.0125,
  copyKlNats: null,
  top1Agreement: 0.95,
  weights: 'exact',
  text: 'a held-out document',
  tokens: 1024,
};

const contents = {
  model: {
    architecture: 'llama',
    name: 'tiny',
    geometry: { layers: 2, kvHeads: 3, keyHeadDim: 8, valueHeadDim: 16 },
    rope: {
      pairing: 'interleaved',
      dims: 8,
      frequencyBase: 10_000,
      frequencyScale: 1,
      extFactor: 0,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 2048,
      frequencyFactors: [1, 1.5, 2, 4],
    },
    fingerprint: 'ab'.repeat(32),
  },
  streams: { key: stream(32, 48, 1), value: stream(48, 96, 2) },
  plans: [
    {
      ratio: 16,
      key: {
        rank: 32,
        groups: [
          { start: 0, size: 1, type: 'fp8', exponent: -2 },
          { start: 16, size: 16, type: 'int4', exponent: 0 },
        ],
      },
      value: { rank: 16, groups: [{ start: 0, size: 16, type: 'int2', exponent: 0 }] },
      keyError: 0.03,
      valueError: 0.05,
    },
    { ratio: 8, key: { rank: 0, groups: [] }, value: { rank: 0, groups: [] }, keyError: 1, valueError: 1 },
  ],
  provenance: {
    seed: 7,
    rows: 20_000,
    heldOutRows: 2048,
    sinks: 4,
    documents: [{ source: 'prose/ä.txt', sha256: 'cd'.repeat(32), tokens: 4096 }],
    producer: 'kvtc 0.1.0',
  },
  quality: [point],
} as const satisfies ProfileContents;

async function written(name: string, changes: Partial<ProfileContents> = {}): Promise<string> {
  const path = join(folder, `${name}.safetensors`);
  await writeProfile(path, { ...contents, ...changes });
  return path;
}

test('a written profile opens with everything it was given, the basis rounded to f16', async () => {
  const path = join(folder, 'whole.safetensors');
  const id = await writeProfile(path, contents);
  const profile = await openProfile(path);
  assert.equal(profile.id, id);
  assert.equal(profile.path, path);
  assert.deepEqual(profile.model, contents.model);
  assert.deepEqual(profile.rank, { key: 32, value: 48 });
  assert.deepEqual(profile.plans, contents.plans.toReversed(), 'plans come back by rising ratio');
  assert.deepEqual(profile.provenance, contents.provenance);
  assert.deepEqual(profile.quality, contents.quality);
  assert.equal(profile.byteLength, (await readFile(path)).length);
  for (const kind of ['key', 'value'] as const) {
    const { mean, variances, basis } = profile.stream(kind);
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

test('more quality points and plans keep id and tensors', async () => {
  const path = await written('grows');
  const before = await openProfile(path);
  const added = { ...point, ratio: 8, weights: 'as-is' as const };
  await rewriteProfile(path, { quality: [...before.quality, added], plans: contents.plans.slice(0, 1) });
  const after = await openProfile(path);
  assert.equal(after.id, before.id);
  assert.deepEqual(after.quality, [point, added]);
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

interface Header {
  __metadata__: Record<string, string>;
  [tensor: string]: unknown;
}

/** Rewrites a valid file's header by `edit`; data stays. */
async function edited(name: string, edit: (header: Header) => void): Promise<string> {
  const path = await written(name);
  const bytes = await readFile(path);
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString()) as Header;
  edit(header);
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await writeFile(path, Buffer.concat([length, json, bytes.subarray(8 + headerBytes)]));
  return path;
}

const tensor = (header: Header, name: string): { dtype: string; shape: number[]; data_offsets: [number, number] } =>
  header[name] as { dtype: string; shape: number[]; data_offsets: [number, number] };

const hostile: readonly (readonly [string, ErrorCode, (header: Header) => void])[] = [
  ['future version', 'KVTC_PROFILE_VERSION', (h) => (h.__metadata__['version'] = '2')],
  ['version that is no number', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['version'] = 'one')],
  ['another format', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['format'] = 'pt')],
  ['no metadata', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__ = {})],
  ['bad id', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['id'] = 'ff')],
  ['model that is not JSON', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['model'] = '{')],
  ['model without rope', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['model'] = '{"architecture":"llama"}')],
  [
    'geometry that would need terabytes',
    'KVTC_PROFILE_MALFORMED',
    (h) => (h.__metadata__['model'] = h.__metadata__['model']?.replace('"layers":2', '"layers":4000000') ?? ''),
  ],
  [
    'unknown member in the model',
    'KVTC_PROFILE_MALFORMED',
    (h) => (h.__metadata__['model'] = h.__metadata__['model']?.replace('{', '{"extra":1,') ?? ''),
  ],
  ['plans that are no list', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['plans'] = '{}')],
  [
    'plan with overlapping groups',
    'KVTC_PROFILE_MALFORMED',
    (h) => (h.__metadata__['plans'] = h.__metadata__['plans']?.replace('[16,16,"int4",0]', '[0,16,"int4",0]') ?? ''),
  ],
  [
    'plan beyond the basis',
    'KVTC_PROFILE_MALFORMED',
    (h) => (h.__metadata__['plans'] = h.__metadata__['plans']?.replace('"rank":32', '"rank":64') ?? ''),
  ],
  [
    'exponent out of range',
    'KVTC_PROFILE_MALFORMED',
    (h) => (h.__metadata__['plans'] = h.__metadata__['plans']?.replace('"fp8",-2', '"fp8",-200') ?? ''),
  ],
  ['provenance missing', 'KVTC_PROFILE_MALFORMED', (h) => delete h.__metadata__['provenance']],
  ['quality with NaN', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['quality'] = '[{"ratio":NaN}]')],
  ['metadata that is not text', 'KVTC_PROFILE_MALFORMED', (h) => Object.assign(h.__metadata__, { version: 1 })],
  ['tensor missing', 'KVTC_PROFILE_MALFORMED', (h) => delete h['value.basis']],
  ['tensor of another type', 'KVTC_PROFILE_MALFORMED', (h) => Object.assign(tensor(h, 'key.basis'), { dtype: 'BF16' })],
  [
    'tensor of a known but wrong type',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.mean'), { dtype: 'F16', shape: [96] }),
  ],
  [
    'tensor of another shape',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.basis'), { shape: [48, 32] }),
  ],
  ['transposed basis', 'KVTC_PROFILE_MALFORMED', (h) => Object.assign(tensor(h, 'value.basis'), { shape: [96, 48] })],
  ['negative extent', 'KVTC_PROFILE_MALFORMED', (h) => Object.assign(tensor(h, 'key.mean'), { shape: [-48] })],
  [
    'extents whose product overflows',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.mean'), { shape: [2 ** 52, 2 ** 52] }),
  ],
  [
    'offsets past the end',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.mean'), { data_offsets: [1e9, 1e9 + 192] }),
  ],
  [
    'overlapping tensors',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.variances'), { data_offsets: [0, 128] }),
  ],
  [
    'offsets that run backwards',
    'KVTC_PROFILE_MALFORMED',
    (h) => Object.assign(tensor(h, 'key.mean'), { data_offsets: [192, 0] }),
  ],
  ['unlisted data', 'KVTC_PROFILE_MALFORMED', (h) => delete h['key.mean']],
];

for (const [what, code, edit] of hostile) {
  test(`refuses a profile with ${what}`, async () => {
    const path = await edited(what.replaceAll(' ', '-'), edit);
    await assert.rejects(openProfile(path), coded(code));
    await assert.rejects(verifyProfile(path), coded(code));
  });
}

test('refuses a file cut anywhere and a header length beyond the file or the limit', async () => {
  const whole = await readFile(await written('cuts'));
  const path = join(folder, 'cut.safetensors');
  const headerBytes = Number(whole.readBigUInt64LE(0));
  for (const length of [0, 7, 8, 100, 8 + headerBytes - 1, 8 + headerBytes, whole.length - 1]) {
    await writeFile(path, whole.subarray(0, length));
    await assert.rejects(openProfile(path), coded('KVTC_PROFILE_MALFORMED'), `cut at ${length}`);
  }
  await writeFile(path, Buffer.concat([whole, Buffer.alloc(1)]));
  await assert.rejects(openProfile(path), coded('KVTC_PROFILE_MALFORMED'));
  for (const claimed of [0n, BigInt(whole.length), 2n ** 40n, 2n ** 64n - 1n]) {
    const bytes = Buffer.from(whole);
    bytes.writeBigUInt64LE(claimed, 0);
    await writeFile(path, bytes);
    await assert.rejects(openProfile(path), coded('KVTC_PROFILE_MALFORMED'), `header of ${claimed}`);
  }
});

test('refuses NaN in a mean when opening, and in a basis when its row is read or verified', async () => {
  const path = await written('nan');
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start).toString()) as Header;
  const [meanOffset] = tensor(header, 'key.mean').data_offsets;
  const broken = Buffer.from(bytes);
  broken.writeUInt32LE(0x7fc00000, start + meanOffset + 8);
  await writeFile(path, broken);
  await assert.rejects(openProfile(path), coded('KVTC_PROFILE_MALFORMED'));

  const [basisOffset] = tensor(header, 'value.basis').data_offsets;
  const inBasis = Buffer.from(bytes);
  inBasis.writeUInt16LE(0x7e00, start + basisOffset + 2 * (96 * 7 + 1));
  await writeFile(path, inBasis);
  const profile = await openProfile(path);
  const { basis } = profile.stream('value');
  await basis.read(0, 7, new Float32Array(7 * 96));
  await assert.rejects(basis.read(7, 8, new Float32Array(96)), coded('KVTC_PROFILE_MALFORMED'));
  await profile.close();
  await assert.rejects(verifyProfile(path), coded('KVTC_PROFILE_MALFORMED'));
});

test('verification finds a changed basis value that opening cannot see', async () => {
  const path = await written('flipped');
  const bytes = await readFile(path);
  bytes[bytes.length - 10]! ^= 1;
  await writeFile(path, bytes);
  await (await openProfile(path)).close();
  await assert.rejects(verifyProfile(path), coded('KVTC_PROFILE_MALFORMED'));
});
