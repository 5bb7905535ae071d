import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import type { MetadataValue, TensorSpec } from '../../../test/tiny-gguf.ts';
import { encodeGguf, writeTinyModel } from '../../../test/tiny-gguf.ts';
import type { ErrorCode } from '../../base/errors.ts';
import { isKvtcError } from '../../base/errors.ts';
import { modelIdentity } from './architecture.ts';
import { describeGguf, parseGguf, readGguf, readTensor } from './gguf.ts';

let folder = '';
let tiny = new Uint8Array(0);
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-gguf-'));
  await writeTinyModel(join(folder, 'tiny.gguf'), 'llama3');
  tiny = new Uint8Array(await readFile(join(folder, 'tiny.gguf')));
});
after(() => rm(folder, { recursive: true }));

const rejectsCode = (promise: Promise<unknown>, code: ErrorCode): Promise<void> =>
  assert.rejects(promise, (error) => isKvtcError(error, code));
const throwsCode = (run: () => unknown, code: ErrorCode): void =>
  assert.throws(run, (error) => isKvtcError(error, code));

const values = (count: number): Float32Array => Float32Array.from({ length: count }, (_, i) => i);
const small: readonly TensorSpec[] = [
  { name: 'a', dims: [3], values: values(3) },
  { name: 'b', dims: [2, 5], values: values(10) },
];

test('reads metadata, directory and a tensor', async () => {
  const path = join(folder, 'small.gguf');
  const metadata = {
    s: 'text',
    n: { u32: 7 },
    f: { f32: 0.5 },
    t: true,
    list: { strings: ['x', 'yy'] },
    i: { i32s: [-1, 2] },
  };
  await writeFile(path, encodeGguf(metadata, small));
  const gguf = await readGguf(path);
  assert.deepEqual(Object.fromEntries(gguf.metadata), {
    s: 'text',
    n: 7,
    f: 0.5,
    t: true,
    list: { elementType: 'string', count: 2, values: ['x', 'yy'] },
    i: { elementType: 'i32', count: 2, values: [-1, 2] },
  });
  const b = gguf.tensors.get('b');
  assert.ok(b !== undefined);
  assert.deepEqual([b.dims, b.type, b.lengthBytes, b.offsetBytes], [[2, 5], 'f32', 40, gguf.dataOffsetBytes + 32]);
  const bytes = await readTensor(gguf, b);
  assert.deepEqual(new Float32Array(bytes.slice().buffer), values(10));
  await rejectsCode(readTensor(gguf, b, 39), 'KVTC_GGUF_MALFORMED');
  await rejectsCode(readGguf(join(folder, 'absent.gguf')), 'KVTC_FILE_NOT_FOUND');
  await rejectsCode(readGguf(folder), 'KVTC_FILE_NOT_FOUND');
  await writeFile(path, '');
  await rejectsCode(readGguf(path), 'KVTC_GGUF_MALFORMED');
});

test('accounts for every byte', async () => {
  const { parts, byteLength } = await describeGguf(join(folder, 'tiny.gguf'));
  assert.equal(
    parts.reduce((sum, part) => sum + part.byteLength, 0),
    byteLength,
  );
  assert.ok(parts.every((part) => part.byteLength >= 0));
  assert.ok(parts.some((part) => part.name === 'tensors, f32' && part.byteLength > 400_000));
});

test('steps over long arrays and keeps their count', () => {
  const bytes = encodeGguf({ v: { strings: Array.from({ length: 5000 }, (_, i) => `t${i}`) } }, []);
  assert.deepEqual(parseGguf(bytes, bytes.length, '')?.metadata.get('v'), {
    elementType: 'string',
    count: 5000,
    values: null,
  });
});

test('gives the same digest to the same header and another to any other', () => {
  const fingerprint = (bytes: Uint8Array): string | undefined => parseGguf(bytes, bytes.length, '')?.headerSha256;
  const one = fingerprint(encodeGguf({ n: { u32: 7 } }, small));
  assert.match(one ?? '', /^[0-9a-f]{64}$/);
  assert.equal(
    one,
    fingerprint(
      encodeGguf(
        { n: { u32: 7 } },
        small.map((t) => ({ ...t, values: t.values.map((x) => x + 1) })),
      ),
    ),
  );
  assert.notEqual(one, fingerprint(encodeGguf({ n: { u32: 8 } }, small)));
  assert.notEqual(one, fingerprint(encodeGguf({ n: { u32: 7 } }, small.toReversed())));
});

test('asks for more bytes while the file has them, and refuses files that end', () => {
  const gguf = parseGguf(tiny, tiny.length, '');
  assert.ok(gguf !== null);
  const ends = Array.from({ length: 400 }, (_, i) => Math.floor((i * gguf.dataOffsetBytes) / 400));
  for (const end of [...ends, gguf.dataOffsetBytes - 33]) {
    assert.equal(parseGguf(tiny.subarray(0, end), tiny.length, ''), null);
    throwsCode(() => parseGguf(tiny.subarray(0, end), end, ''), 'KVTC_GGUF_MALFORMED');
  }
  assert.equal(parseGguf(tiny.subarray(0, gguf.dataOffsetBytes), tiny.length, '')?.headerSha256, gguf.headerSha256);
  throwsCode(() => parseGguf(tiny.subarray(0, tiny.length - 32), tiny.length - 32, ''), 'KVTC_GGUF_MALFORMED');
});

test('refuses other files, versions and impossible entries', () => {
  const bytes = encodeGguf({ n: { u32: 7 } }, small);
  const at = (offset: number, byte: number): Uint8Array => {
    const changed = bytes.slice();
    changed[offset] = byte;
    return changed;
  };
  const refuse = (changed: Uint8Array): void =>
    throwsCode(() => parseGguf(changed, changed.length, ''), 'KVTC_GGUF_MALFORMED');
  refuse(at(0, 0x50));
  refuse(at(4, 1));
  refuse(at(4, 4));
  refuse(at(7, 3));
  refuse(at(15, 1)); // 2^56 tensors
  refuse(at(22, 1)); // 2^48 keys
  refuse(at(24 + 4, 1)); // a key of 2^32 bytes
  refuse(at(24 + 9, 13)); // a value of an unknown type
  const directory = 24 + 9 + 4 + 4;
  refuse(at(directory + 9, 0)); // no dimensions
  refuse(at(directory + 9, 5)); // five
  refuse(at(directory + 9 + 4 + 7, 1)); // 2^56 values
  refuse(at(directory + 9 + 4 + 8, 200)); // an unknown tensor type
  refuse(at(directory + 9 + 4 + 8 + 4, 1)); // off its alignment
  refuse(encodeGguf({}, [small[0] as TensorSpec, small[0] as TensorSpec]));
  refuse(encodeGguf({ 'general.alignment': { u32: 12 } }, small));
  refuse(encodeGguf({ 'general.alignment': 'wide' }, small));
  const overlapping = at(directory + 9 + 4 + 8 + 4 + 8 + 9 + 4 + 16 + 4, 0); // b where a is
  refuse(overlapping);
});

test('meets any damage with a coded error', () => {
  const header = parseGguf(tiny, tiny.length, '')?.dataOffsetBytes ?? 0;
  const changes = fc.array(fc.tuple(fc.nat(header - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(changes, (damage) => {
      const bytes = tiny.slice();
      for (const [offset, byte] of damage) bytes[offset] = byte;
      try {
        parseGguf(bytes, bytes.length, '');
      } catch (error) {
        assert.ok(isKvtcError(error, 'KVTC_GGUF_MALFORMED'), String(error));
      }
    }),
    { numRuns: 1500 },
  );
});

const plain: Readonly<Record<string, MetadataValue>> = {
  'general.architecture': 'llama',
  'llama.block_count': { u32: 2 },
  'llama.embedding_length': { u32: 64 },
  'llama.attention.head_count': { u32: 4 },
  'llama.attention.head_count_kv': { u32: 2 },
};

const identityOf = async (
  metadata: Readonly<Record<string, MetadataValue>>,
  tensors: readonly TensorSpec[] = [],
): ReturnType<typeof modelIdentity> => {
  const path = join(folder, 'identity.gguf');
  await writeFile(path, encodeGguf(metadata, tensors));
  return modelIdentity(await readGguf(path));
};

test('takes the identity of a model from its file, with the defaults of the engine', async () => {
  const { fingerprint, ...identity } = await identityOf(plain);
  assert.match(fingerprint, /^[0-9a-f]{64}$/);
  assert.deepEqual(identity, {
    architecture: 'llama',
    name: 'identity',
    geometry: { layers: 2, kvHeads: 2, keyHeadDim: 16, valueHeadDim: 16 },
    rope: {
      pairing: 'interleaved',
      dims: 16,
      frequencyBase: 10_000,
      frequencyScale: 1,
      extFactor: 0,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 0,
      frequencyFactors: null,
    },
  });
  const { geometry } = await identityOf({ ...plain, 'llama.attention.head_count_kv': { i32s: [2, 2] } });
  assert.equal(geometry.kvHeads, 2);
});

const factors = (count: number, first = 1): TensorSpec[] => [
  { name: 'rope_freqs.weight', dims: [count], values: Float32Array.from({ length: count }, () => first) },
];
const named = (architecture: string): Readonly<Record<string, MetadataValue>> => ({
  ...Object.fromEntries(
    Object.entries(plain).map(([key, value]) => [key.replace('llama.', `${architecture}.`), value]),
  ),
  'general.architecture': architecture,
});

const REFUSED: readonly (readonly [
  string,
  Readonly<Record<string, MetadataValue>>,
  TensorSpec[],
  ErrorCode,
  RegExp,
])[] = [
  [
    'a sliding window',
    { ...named('gemma2'), 'gemma2.attention.sliding_window': { u32: 512 } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /sliding window/,
  ],
  [
    'recurrent layers',
    { ...named('mamba2'), 'mamba2.ssm.state_size': { u32: 16 } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /recurrent/,
  ],
  [
    'compressed caches',
    { ...named('deepseek2'), 'deepseek2.attention.kv_lora_rank': { u32: 512 } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /MLA/,
  ],
  [
    'positions of several axes',
    { ...named('qwen2vl'), 'qwen2vl.rope.dimension_sections': { i32s: [2, 3, 3, 0] } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /M-RoPE/,
  ],
  [
    'head counts by layer',
    { ...plain, 'llama.attention.head_count_kv': { i32s: [2, 1] } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /differ/,
  ],
  [
    'unequal heads',
    { ...plain, 'llama.attention.key_length': { u32: 32 } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /key and value/,
  ],
  [
    'half-rotated heads where the graph has none',
    { ...plain, 'llama.rope.dimension_count': { u32: 8 } },
    [],
    'KVTC_MODEL_UNSUPPORTED',
    /rotates/,
  ],
  ['an architecture nobody checked', named('novel'), [], 'KVTC_MODEL_UNSUPPORTED', /checked/],
  ['a part of a model', { ...plain, 'split.count': { u32: 3 } }, [], 'KVTC_MODEL_UNSUPPORTED', /split/],
  ['LongRoPE by name', { ...plain, 'llama.rope.scaling.type': 'longrope' }, [], 'KVTC_ROPE_UNSUPPORTED', /longrope/],
  [
    'LongRoPE by tensor',
    named('phi3'),
    [{ name: 'rope_factors_long.weight', dims: [8], values: values(8) }],
    'KVTC_ROPE_UNSUPPORTED',
    /LongRoPE/,
  ],
  ['factors the graph ignores', named('qwen2'), factors(8), 'KVTC_ROPE_UNSUPPORTED', /factors/],
  ['too few factors', plain, factors(4), 'KVTC_ROPE_UNSUPPORTED', /factors/],
  ['factors of zero', plain, factors(8, 0), 'KVTC_ROPE_UNSUPPORTED', /positive/],
  ['XDRoPE', { ...plain, 'llama.rope.scaling.alpha': { f32: 1000 } }, [], 'KVTC_ROPE_UNSUPPORTED', /XDRoPE/],
  ['a missing layer count', { 'general.architecture': 'llama' }, [], 'KVTC_GGUF_MALFORMED', /block_count/],
  ['no architecture', {}, [], 'KVTC_GGUF_MALFORMED', /architecture/],
  ['no heads', { ...plain, 'llama.attention.head_count': { u32: 0 } }, [], 'KVTC_GGUF_MALFORMED', /gives/],
  [
    'queries that do not divide',
    { ...plain, 'llama.attention.head_count_kv': { u32: 3 } },
    [],
    'KVTC_GGUF_MALFORMED',
    /queries/,
  ],
  ['an odd rotation', { ...plain, 'llama.rope.dimension_count': { u32: 7 } }, [], 'KVTC_GGUF_MALFORMED', /RoPE/],
  ['a base of nothing', { ...plain, 'llama.rope.freq_base': { f32: 0 } }, [], 'KVTC_GGUF_MALFORMED', /base/],
  ['text for a number', { ...plain, 'llama.rope.freq_base': 'high' }, [], 'KVTC_GGUF_MALFORMED', /expected a number/],
];

for (const [what, metadata, tensors, code, message] of REFUSED) {
  test(`refuses models with ${what}`, async () => {
    await assert.rejects(
      identityOf(metadata, tensors),
      (error) => isKvtcError(error, code) && message.test(error.message),
    );
  });
}
