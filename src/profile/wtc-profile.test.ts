import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { contents, matrix, point } from '../../test/profile-contents.ts';
import type { ErrorCode } from '../base/errors.ts';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { scaleIndices } from '../codec/wtc/classes.ts';
import { packFamily } from '../codec/wtc/family.ts';
import { trainTables } from '../codec/wtc/train.ts';
import { openProfile, verifyProfile } from './open-profile.ts';
import type { HeadMetric, TokenMeans, WtcProfile } from './profile.ts';
import type { TuningRecord } from './tuning.ts';
import { rewriteProfile, writeProfile } from './write-profile.ts';
import type { WtcContents, WtcStream } from './write-wtc.ts';
import { writeWtcProfile } from './write-wtc.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-wtc-'));
});
after(() => rm(folder, { recursive: true }));

const coded = (code: ErrorCode) => (error: unknown) => isKvtcError(error, code);

function stream(rank: number, width: number, seed: number): WtcStream {
  const random = seededRandom(seed);
  const scales = scaleIndices(Float32Array.from({ length: rank }, (_, i) => 4 / (1 + i)));
  const coefficients = Float32Array.from({ length: 64 * rank }, (_, i) => (random.normal() * 4) / (1 + (i % rank)));
  return {
    mean: Float32Array.from({ length: width }, () => random.normal()),
    scales,
    family: trainTables({ coefficients, tokenCount: 64, rank }, scales, [-512, -256, 0, 256]),
    synthesis: matrix(rank, width, seed),
    metric: seed === 1 ? null : metricOf(6, 16),
  };
}

function metricOf(heads: number, headDim: number): HeadMetric {
  const packed = Float32Array.from({ length: (heads * headDim * (headDim + 1)) / 2 }, (_, i) => 1 / (1 + i));
  return { heads, headDim, packed };
}

const step = (ratio: number, stepIndex: number): WtcContents['steps'][number] => ({
  ratio,
  key: { stepIndex, rank: 32, cut: -5 },
  value: { stepIndex: stepIndex + 8, rank: 48, cut: -5 },
  bitsPerToken: 2304 / ratio,
  exponent: 0.3,
});
const vector = (length: number): Float32Array => Float32Array.from({ length }, (_, i) => i / length);
const wtcContents: WtcContents = {
  model: contents.model,
  streams: { key: stream(32, 48, 1), value: stream(48, 96, 2) },
  steps: [step(24, 128), step(8, -128)],
  predictor: {
    components: 16,
    recency: false,
    deviations: { key: vector(16), value: vector(16) },
    weights: { key: vector(67), value: vector(67) },
  },
  tokenMeans: null,
  provenance: contents.provenance,
  quality: [],
};

async function written(name: string, changes: Partial<WtcContents> = {}): Promise<string> {
  const path = join(folder, `${name}.safetensors`);
  await writeWtcProfile(path, { ...wtcContents, ...changes });
  return path;
}

async function opened(path: string): Promise<WtcProfile> {
  const profile = await openProfile(path);
  assert.ok(profile.codec === 'wtc');
  return profile;
}

test('a written profile opens with everything it was given, matrices rounded to a 254th of a head’s largest', async () => {
  const path = await written('whole');
  const profile = await opened(path);
  assert.deepEqual(profile.rank, { key: 32, value: 48 });
  assert.deepEqual(profile.steps, wtcContents.steps.toReversed(), 'steps come back by rising ratio');
  assert.deepEqual(profile.predictor, wtcContents.predictor);
  const recent = { ...wtcContents.predictor!, recency: true, weights: { key: vector(68), value: vector(68) } };
  assert.deepEqual((await opened(await written('recent', { predictor: recent }))).predictor, recent);
  for (const kind of ['key', 'value'] as const) {
    const given = wtcContents.streams[kind];
    const { mean, analysis, synthesis } = profile.stream(kind);
    assert.deepEqual(mean, given.mean);
    assert.deepEqual(profile.tables[kind].scales, given.scales);
    assert.deepEqual(packFamily(profile.tables[kind].family), packFamily(given.family));
    assert.deepEqual(analysis, given.metric ?? synthesis);
    const dim = kind === 'key' ? 8 : 16;
    const a = new Float32Array(3 * synthesis.columns);
    const b = new Float32Array(3 * synthesis.columns);
    await synthesis.read(5, 8, a);
    await given.synthesis.read(5, 8, b);
    for (let at = 0; at < a.length; at += dim) {
      const most = b.subarray(at, at + dim).reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      for (let i = at; i < at + dim; i++) {
        assert.ok(Math.abs((a[i] as number) - (b[i] as number)) <= (most / 254) * 1.0001);
      }
    }
  }
  await profile.close();
  await verifyProfile(path);
});

const tokenMeans: TokenMeans = {
  dims: 3,
  width: 5,
  features: matrix(3, 10, 5),
  offsets: vector(3),
  expected: { key: matrix(32, 3, 6), value: matrix(20, 3, 7) },
};

test('token means make it a version of their own, which has them or is refused', async () => {
  const path = await written('means', { tokenMeans });
  const profile = await opened(path);
  assert.ok(profile.tokenMeans !== null);
  const { dims, width, offsets, features, expected } = profile.tokenMeans;
  assert.deepEqual({ dims, width, offsets }, { dims: 3, width: 5, offsets: vector(3) });
  for (const [got, given] of [
    [features, tokenMeans.features],
    [expected.key, tokenMeans.expected.key],
    [expected.value, tokenMeans.expected.value],
  ] as const) {
    const { rows, columns } = given;
    assert.deepEqual([got.rows, got.columns], [rows, columns]);
    const [a, b] = [new Float32Array(rows * columns), new Float32Array(rows * columns)];
    await got.read(0, rows, a);
    await given.read(0, rows, b);
    const most = b.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
    assert.ok(a.every((value, i) => Math.abs(value - b[i]!) <= most / 254 + 1e-7));
  }
  await profile.close();
  await verifyProfile(path);
  const bytes = await readFile(path);
  const version = (from: string, to: string): Buffer => {
    const text = bytes.toString('latin1').replace(`"version":"${from}"`, `"version":"${to}"`);
    return Buffer.from(text, 'latin1');
  };
  const changed = join(folder, 'changed.safetensors');
  await writeFile(changed, version('3', '4'));
  await assert.rejects(openProfile(changed), coded('KVTC_PROFILE_VERSION'));
  const plain = (await readFile(await written('plain'))).toString('latin1');
  await writeFile(changed, Buffer.from(plain.replace('"version":"2"', '"version":"3"'), 'latin1'));
  await assert.rejects(openProfile(changed), coded('KVTC_PROFILE_MALFORMED'));
  for (const wrong of [
    { expected: { ...tokenMeans.expected, key: matrix(33, 3, 6) } },
    { expected: { ...tokenMeans.expected, value: matrix(20, 4, 6) } },
    { features: matrix(3, 12, 5) },
    { offsets: vector(3).fill(NaN) },
  ]) {
    await assert.rejects(written('wrong', { tokenMeans: { ...tokenMeans, ...wrong } }), coded('KVTC_OPTION_INVALID'));
  }
});

test('the same contents give the same bytes, and new steps and quality keep the id', async () => {
  const path = await written('once');
  assert.deepEqual(await readFile(path), await readFile(await written('twice')));
  const before = await opened(path);
  await rewriteProfile(path, { steps: [step(10, 0)], quality: [point] });
  const after = await opened(path);
  assert.equal(after.id, before.id);
  assert.deepEqual(after.steps, [step(10, 0)]);
  assert.deepEqual(after.quality, [point]);
  await Promise.all([before.close(), after.close()]);
  await verifyProfile(path);
  await assert.rejects(rewriteProfile(path, { plans: contents.plans }), coded('KVTC_OPTION_INVALID'));
});

const tuning: TuningRecord = {
  ratio: 47.5,
  weights: 'exact',
  prefixTokens: 1536,
  continuationTokens: 384,
  copyTokens: 256,
  documents: [{ source: 'a text', sha256: 'cd'.repeat(32), tokens: 1920 }],
  candidates: [
    { exponent: 0.3, valueOffset: 0, keyStepIndex: -256, codedBytes: 1000, klNats: 0.02, copyKlNats: 0.1 },
    { exponent: 0.3, valueOffset: 128, keyStepIndex: -320, codedBytes: 1002, klNats: 0.01, copyKlNats: 0.1 },
  ],
  chosen: 1,
};

test('keeps how its steps were tuned, whatever else is rewritten; profiles of the paper have nothing to tune', async () => {
  const path = await written('tuned');
  const before = await opened(path);
  assert.equal(before.tuning, null);
  await rewriteProfile(path, { tuning });
  await rewriteProfile(path, { quality: [point] });
  const after = await opened(path);
  assert.deepEqual([after.tuning, after.id], [tuning, before.id]);
  await Promise.all([before.close(), after.close()]);
  await assert.rejects(rewriteProfile(path, { tuning: { ...tuning, chosen: 2 } }), coded('KVTC_OPTION_INVALID'));
  const paper = join(folder, 'paper.safetensors');
  await writeProfile(paper, contents);
  await assert.rejects(rewriteProfile(paper, { tuning }), coded('KVTC_OPTION_INVALID'));
});

test('refuses to write what it would not read', async () => {
  const { key, value } = wtcContents.streams;
  const wrong: readonly Partial<WtcContents>[] = [
    { steps: [] },
    { steps: [step(8, 0), step(8, 64)] },
    { steps: [step(8, 64), step(16, 0)] },
    { streams: { key: { ...key, synthesis: matrix(32, 47, 1) }, value } },
    { streams: { key: { ...key, metric: metricOf(6, 7) }, value } },
    { streams: { key: { ...key, mean: new Float32Array(48).fill(NaN) }, value } },
  ];
  for (const changes of wrong) await assert.rejects(written('wrong', changes), coded('KVTC_OPTION_INVALID'));
});

interface Header {
  __metadata__: Record<string, string>;
  [tensor: string]: unknown;
}
const tensor = (header: Header, name: string): { dtype: string; shape: number[]; data_offsets: [number, number] } =>
  header[name] as { dtype: string; shape: number[]; data_offsets: [number, number] };

/** Rewrites a valid file's header and data by `edit`. */
async function edited(name: string, edit: (header: Header, data: DataView) => unknown): Promise<string> {
  const path = await written(name);
  const bytes = await readFile(path);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start).toString()) as Header;
  const data = Uint8Array.from(bytes.subarray(start));
  edit(header, new DataView(data.buffer));
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  await writeFile(path, Buffer.concat([length, json, data]));
  return path;
}

const hostile: readonly (readonly [string, (header: Header, data: DataView) => unknown])[] = [
  ['another codec', (h) => (h.__metadata__['codec'] = 'wtc2')],
  ['the paper’s version', (h) => (h.__metadata__['version'] = '1')],
  ['no steps', (h) => delete h.__metadata__['steps']],
  ['an empty table of steps', (h) => (h.__metadata__['steps'] = '[]')],
  ['a tuning without candidates', (h) => (h.__metadata__['tuning'] = '{"candidates":[],"chosen":0}')],
  ['a rank beyond the scales', (h) => (h.__metadata__['steps'] = h.__metadata__['steps']!.replace('32', '48'))],
  ['a step out of range', (h) => (h.__metadata__['steps'] = h.__metadata__['steps']!.replace('128', '99999'))],
  ['no scales', (h) => delete h['key.scales']],
  ['scales of another type', (h) => (tensor(h, 'key.scales').dtype = 'F16')],
  ['rising scales', (h, data) => data.setInt16(tensor(h, 'key.scales').data_offsets[0] + 2, 8000, true)],
  ['scales out of range', (h, data) => data.setInt16(tensor(h, 'key.scales').data_offsets[0], 20_000, true)],
  ['tables that are none', (h, data) => data.setFloat32(tensor(h, 'value.tables').data_offsets[0], 7, true)],
  ['NaN in a table', (h, data) => data.setFloat32(tensor(h, 'value.tables').data_offsets[0], NaN, true)],
  ['no synthesis', (h) => delete h['key.synthesis']],
  ['a transposed synthesis', (h) => tensor(h, 'key.synthesis').shape.reverse()],
  ['a metric of another shape', (h) => tensor(h, 'value.metric').shape.reverse()],
  ['NaN in a metric', (h, data) => data.setFloat32(tensor(h, 'value.metric').data_offsets[0], NaN, true)],
  ['Inf as a scale', (h, data) => data.setFloat32(tensor(h, 'key.synthesis.scales').data_offsets[0], Infinity, true)],
  ['half a predictor', (h) => delete h['value.predictor.weights']],
  [
    'a negative deviation',
    (h, data) => data.setFloat32(tensor(h, 'key.predictor.deviations').data_offsets[0], -1, true),
  ],
];

for (const [what, edit] of hostile) {
  test(`refuses a profile with ${what}`, async () => {
    const path = await edited(what.replaceAll(/\W/gu, '-'), edit);
    await assert.rejects(openProfile(path), coded('KVTC_PROFILE_MALFORMED'));
  });
}
