import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { contents } from '../../test/profile-contents.ts';
import { isKvtcError } from '../base/errors.ts';
import type { ErrorCode } from '../base/errors.ts';
import { openProfile, verifyProfile } from './open-profile.ts';
import { writeProfile } from './write-profile.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-hostile-'));
});
after(() => rm(folder, { recursive: true }));

const coded = (code: ErrorCode) => (error: unknown) => isKvtcError(error, code);

async function written(name: string): Promise<string> {
  const path = join(folder, `${name}.safetensors`);
  await writeProfile(path, contents);
  return path;
}

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
  ['future version', 'KVTC_PROFILE_VERSION', (h) => (h.__metadata__['version'] = '4')],
  ['the version of wtc and no codec', 'KVTC_PROFILE_MALFORMED', (h) => (h.__metadata__['version'] = '2')],
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
  const { synthesis: basis } = profile.stream('value');
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
