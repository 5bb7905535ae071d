// Profiles that expect part of a token by its id, the whole way on a tiny model: moments with what ids tell → profile →
// container → state, and all that can be wrong.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import type { ErrorCode } from '../src/base/errors.ts';
import { isKvtcError } from '../src/base/errors.ts';
import { STREAMS, headDim, streamWidth } from '../src/base/geometry.ts';
import { f16ToF32 } from '../src/base/half.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import type { Coder } from '../src/cache/coder.ts';
import { openCoder } from '../src/cache/coder.ts';
import { inspect } from '../src/cache/inspect.ts';
import { ggufEmbeddings } from '../src/cache/model-embeddings.ts';
import type { ModelIdentity } from '../src/profile/profile.ts';
import { openProfile, verifyProfile } from '../src/profile/open-profile.ts';
import { headerPrefix } from '../src/profile/safetensors.ts';
import { readGguf } from '../src/engines/llama/gguf.ts';
import { openModel } from '../src/engines/llama/session.ts';
import { gatherRows, parseState, rowBytesOf } from '../src/engines/llama/state.ts';
import { openGgmlBackend } from '../src/linalg/ggml/backend.ts';
import { writeTinyModel } from './tiny-gguf.ts';
import { tinyCalibration, tinyText } from './tiny-world.ts';
import { TOKENS, makeWtcWorld } from './wtc-world.ts';

const SINKS = 4;
const { world, layers, state, tokens, rowsOf, relativeError, through } = await makeWtcWorld();
const at = (name: string): string => join(world.directory, name);
const embeddings = ggufEmbeddings(await readGguf(world.modelPath));
const model = await openModel(world.modelPath);
const { identity } = model;
const documents = Array.from({ length: 8 }, (_, d) =>
  model.tokenize(tinyText(300, 70 + d), { addSpecial: false }).slice(0, 512),
);
model.close();

/** f32[tokens, 2 · width], as docs/format/sensitivity.md says. */
async function featuresOf(ids: Int32Array, width: number): Promise<Float32Array> {
  const own = await embeddings(ids);
  const out = new Float32Array(2 * own.length);
  for (let t = 0; t < ids.length; t++) {
    const row = own.subarray(t * width, (t + 1) * width);
    const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / width + 1e-12);
    for (let i = 0; i < width; i++) {
      out[2 * t * width + i] = row[i]! * scale;
      if (t + 1 < ids.length) out[(2 * t + 3) * width + i] = row[i]! * scale;
    }
  }
  return out;
}

/** Sums of products of all columns with each other, over rows less a shift: what kvtc_collect would write. */
async function writeMoments(path: string, withTokens: boolean, facts: ModelIdentity): Promise<void> {
  const backend = openGgmlBackend({ threads: 1 });
  const width = (await embeddings(Int32Array.of(1))).length;
  const found: Record<
    string,
    { type: 'F32' | 'F64' | 'I32'; shape: number[]; values: Float32Array | Float64Array | Int32Array }
  > = {};
  const ids = Int32Array.from(documents.flatMap((document) => [...document]));
  found['documents'] = { type: 'I32', shape: [documents.length, 512], values: ids };
  const features: Float32Array[] = [];
  const rows: Record<'key' | 'value', Float32Array[]> = { key: [], value: [] };
  for (const document of documents) {
    features.push((await featuresOf(document, width)).subarray(SINKS * 2 * width));
    const session = await openModel(world.modelPath);
    const context = await session.createContext({ contextTokens: 512 });
    await context.decode(document, { logits: 'none' });
    const view = parseState(context.getState());
    for (const stream of STREAMS) {
      const raw = new Uint8Array((512 - SINKS) * layers * rowBytesOf(view, stream));
      gatherRows(view, stream, { startLayer: 0, endLayer: layers }, { startToken: SINKS, endToken: 512 }, raw);
      const out = new Float32Array((512 - SINKS) * streamWidth(facts.geometry, stream));
      const layout = {
        layers,
        heads: facts.geometry.kvHeads,
        headDim: headDim(facts.geometry, stream),
        element: 'f16',
      } as const;
      await backend.readRows(layout, stream === 'key' ? facts.rope : null, raw, view.positions.slice(SINKS), out);
      rows[stream].push(out);
    }
    session.close();
  }
  backend.close();
  const count = documents.length * (512 - SINKS);
  const meanProducts = (a: Float32Array[], n: number, b: Float32Array[], m: number): Float64Array => {
    const out = new Float64Array(n * m);
    for (const [d, left] of a.entries()) {
      for (let r = 0; r < left.length / n; r++) {
        for (let i = 0; i < n; i++) {
          const weight = left[r * n + i]! / count;
          for (let j = 0; j < m; j++) out[i * m + j]! += weight * b[d]![r * m + j]!;
        }
      }
    }
    return out;
  };
  const lower = (square: Float64Array, n: number): Float64Array =>
    Float64Array.from({ length: n }, (_, i) => i).reduce(
      (out, i) => {
        out.set(square.subarray(i * n, i * n + i + 1), (i * (i + 1)) / 2);
        return out;
      },
      new Float64Array((n * (n + 1)) / 2),
    );
  const ones = features.map((part) => new Float32Array(part.length / (2 * width)).fill(1));
  for (const stream of STREAMS) {
    const p = streamWidth(facts.geometry, stream);
    const own = rows[stream];
    found[`${stream}.shift`] = { type: 'F32', shape: [p], values: new Float32Array(p) };
    found[`${stream}.mean`] = { type: 'F64', shape: [p], values: meanProducts(own, p, ones, 1) };
    const second = lower(meanProducts(own, p, own, p), p);
    found[`${stream}.second`] = { type: 'F64', shape: [second.length], values: second };
    if (!withTokens) continue;
    const cross = Float32Array.from(meanProducts(own, p, features, 2 * width));
    found[`${stream}.token`] = { type: 'F32', shape: [p, 2 * width], values: cross };
  }
  if (withTokens) {
    found['token.mean'] = { type: 'F64', shape: [2 * width], values: meanProducts(features, 2 * width, ones, 1) };
    const second = lower(meanProducts(features, 2 * width, features, 2 * width), 2 * width);
    found['token.second'] = { type: 'F64', shape: [second.length], values: second };
  }
  const tensors = Object.entries(found)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, tensor]) => ({ name, ...tensor }));
  const { geometry, rope, ...rest } = facts;
  const metadata = {
    format: 'kvtc-moments',
    version: '1',
    producer: 'test',
    model: JSON.stringify({ ...rest, ...geometry, keyPairing: rope.pairing }),
    settings: JSON.stringify({ sinks: SINKS, rows: count }),
  };
  const bytes = tensors.map(({ values }) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  await writeFile(path, Buffer.concat([headerPrefix(metadata, tensors), ...bytes]));
}

for (const [name, withTokens] of [
  ['means', true],
  ['one-mean', false],
] as const) {
  await writeMoments(at(`${name}.moments`), withTokens, identity);
  await calibrate({
    ...tinyCalibration(world.modelPath, at(name)),
    codec: 'wtc',
    sensitivity: at('steps.sensitivity'),
    moments: at(`${name}.moments`),
  });
}

async function withCoder<T>(name: string, use: (coder: Coder) => Promise<T>, modelPath?: string): Promise<T> {
  const coder = await openCoder(at(name), { model: modelPath });
  try {
    return await use(coder);
  } finally {
    await coder.close();
  }
}

const hasCode =
  (code: ErrorCode) =>
  (error: unknown): boolean =>
    isKvtcError(error, code);

test('moments that tell what ids do make a profile of version 3, others one of version 2', async () => {
  await verifyProfile(at('means'));
  for (const [name, version] of [
    ['means', '3'],
    ['one-mean', '2'],
  ] as const) {
    assert.ok((await readFile(at(name))).subarray(0, 65_536).includes(`"version":"${version}"`));
  }
  const profile = await openProfile(at('means'));
  assert.ok(profile.codec === 'wtc' && profile.tokenMeans !== null);
  const { dims, width, expected } = profile.tokenMeans;
  assert.equal(width, (await embeddings(Int32Array.of(1))).length);
  assert.equal(dims, 2 * width);
  for (const stream of STREAMS) assert.equal(expected[stream].rows, profile.rank[stream]);
  await profile.close();
  const found = await inspect(at('means'));
  assert.ok(found.kind === 'profile' && found.parts.some(({ name }) => name === 'token.features'));
  assert.equal(found.tokenFeatures, dims);
});

test('a profile that needs no model can be made from the same moments', async () => {
  const options = { codec: 'wtc', sensitivity: 'none', moments: at('means.moments'), tokenIds: false } as const;
  await calibrate({ ...tinyCalibration(world.modelPath, at('no-ids')), ...options });
  await withCoder('no-ids', async (coder) => assert.ok((await through(coder, {})).bytes.length > 0));
});

test('a calibration learns by itself what ids tell when it is asked to, and goes on with that where it stopped', async () => {
  const sensitivity = at('steps.sensitivity');
  const options = {
    ...tinyCalibration(world.modelPath, at('own')),
    codec: 'wtc',
    sensitivity,
    tokenIds: true,
  } as const;
  const stopped = AbortSignal.timeout(1);
  await assert.rejects(calibrate({ ...options, signal: stopped }), hasCode('KVTC_ABORTED'));
  for (const index of [0, 1]) {
    await calibrate({ ...options, output: at(`own-${index}`), part: { index, count: 2 } });
  }
  const { profileId } = await calibrate(options);
  const parts = [0, 1].map((index) => at(`own-${index}.work`));
  const joined = await calibrate({ ...options, output: at('joined'), parts });
  assert.equal(joined.profileId, profileId);
  const profile = await openProfile(at('own'));
  assert.ok(profile.codec === 'wtc' && profile.tokenMeans !== null);
  await profile.close();
  const errorOf = (name: string, modelPath?: string): Promise<number> =>
    withCoder(
      name,
      async (coder) => {
        const { restored } = await through(coder, { ratio: 8, window: 0, tokens });
        return relativeError(restored, SINKS, TOKENS);
      },
      modelPath,
    );
  await calibrate({ ...options, output: at('without'), tokenIds: undefined });
  assert.ok((await errorOf('own', world.modelPath)) < 0.9 * (await errorOf('without')));
});

test('what is expected needs no bits: no larger, it errs less', async () => {
  const measure = (name: string, ratio: number, modelPath?: string) =>
    withCoder(
      name,
      async (coder) => {
        const { bytes, restored } = await through(coder, { ratio, window: 0 });
        assert.deepEqual(rowsOf(restored, 'key', 0, 1), rowsOf(state, 'key', 0, 1), 'the first token is exact');
        return { bytes: bytes.length, error: relativeError(restored, SINKS, TOKENS) };
      },
      modelPath,
    );
  const one = await measure('one-mean', 16);
  const means = await measure('means', 24, world.modelPath);
  assert.ok(means.bytes < one.bytes, `${means.bytes} and ${one.bytes} bytes`);
  assert.ok(means.error < 0.8 * one.error, `${means.error} and ${one.error}`);
});

test('what ids tell of the first layer, which is nearly all, is not lost where few components are kept', async () => {
  const errorOfLayer0 = async (name: string, modelPath?: string): Promise<number> => {
    const path = at(`${name} of few`);
    const options = {
      codec: 'wtc',
      rank: 32,
      sensitivity: at('steps.sensitivity'),
      moments: at(`${name}.moments`),
    } as const;
    await calibrate({ ...tinyCalibration(world.modelPath, path), ...options });
    return withCoder(
      `${name} of few`,
      async (coder) => {
        const { restored } = await through(coder, { ratio: 16, window: 0 });
        const [a, b] = [state, restored].map((bytes) => new Uint16Array(rowsOf(bytes, 'value', SINKS, TOKENS).buffer));
        let error = 0;
        let energy = 0;
        for (let i = 0; i < a!.length / layers; i++) {
          error += (f16ToF32(a![i]!) - f16ToF32(b![i]!)) ** 2;
          energy += f16ToF32(a![i]!) ** 2;
        }
        return error / energy;
      },
      modelPath,
    );
  };
  const [one, means] = [await errorOfLayer0('one-mean'), await errorOfLayer0('means', world.modelPath)];
  assert.ok(means < 1.1 * one, `${means} and ${one}`);
});

test('a range of layers comes back as in the whole, and the same cache gives the same bytes', async () => {
  await withCoder(
    'means',
    async (coder) => {
      const { bytes, restored } = await through(coder, { ratio: 16 });
      assert.deepEqual((await through(coder, { ratio: 16 })).bytes, bytes);
      const part = await coder.restoreLayers(bytes, { startLayer: 1, endLayer: 2 });
      const view = parseState(restored);
      for (const stream of STREAMS) {
        const rows = new Uint8Array(TOKENS * rowBytesOf(view, stream));
        gatherRows(view, stream, { startLayer: 1, endLayer: 2 }, { startToken: 0, endToken: TOKENS }, rows);
        assert.deepEqual(part[stream], rows);
      }
    },
    world.modelPath,
  );
});

test('without the model, with another one, or without ids it is refused', async () => {
  const { bytes } = await withCoder('means', (coder) => through(coder, {}), world.modelPath);
  await withCoder('means', async (coder) => {
    await assert.rejects(through(coder, {}), hasCode('KVTC_OPTION_INVALID'));
    await assert.rejects(coder.restore(bytes), hasCode('KVTC_OPTION_INVALID'));
  });
  const other = at('other.gguf');
  await writeTinyModel(other, 'llama', { seed: 2 });
  await withCoder('means', (coder) => assert.rejects(coder.restore(bytes), hasCode('KVTC_MODEL_MISMATCH')), other);
  await withCoder(
    'means',
    async (coder) => {
      const target = at('no-ids.kvtc');
      await assert.rejects(coder.compress(state, target), hasCode('KVTC_STATE_UNSUPPORTED'));
      await assert.rejects(readFile(target), { code: 'ENOENT' });
      const odd = tokens.slice();
      odd[9] = 1 << 20;
      await assert.rejects(coder.compress(state, target, { tokens: odd }), hasCode('KVTC_STATE_MISMATCH'));
    },
    world.modelPath,
  );
  await withCoder('means', (coder) => assert.rejects(coder.restore(bytes), hasCode('KVTC_FILE_NOT_FOUND')), at('gone'));
});

test('the independent decoder rebuilds the same rows, that of the first token included', async () => {
  const containerPath = at('means.kvtc');
  const restored = await withCoder(
    'means',
    async (coder) => {
      await coder.compress(state, containerPath, { ratio: 12, tokens, sinks: 0 });
      return (await coder.restore(containerPath)).state;
    },
    world.modelPath,
  );
  const vocabulary = (await readGguf(world.modelPath)).tensors.get('token_embd.weight')?.dims[1] ?? 0;
  const table = await embeddings(Int32Array.from({ length: vocabulary }, (_, id) => id));
  await writeFile(at('embeddings.f32'), table);
  const [first, last] = [0, 24];
  for (const stream of STREAMS) {
    const out = at(`${stream}.rows`);
    const words = ['rows', containerPath, '--profile', at('means'), '--stream', stream, '--tokens', `${first}:${last}`];
    const decoder = join(import.meta.dirname, '..', 'reference', 'decode.py');
    await assert.rejects(promisify(execFile)('python3', [decoder, ...words, '-o', out]), { code: 3 });
    await promisify(execFile)('python3', [decoder, ...words, '--embeddings', at('embeddings.f32'), '-o', out]);
    const expected = new Float32Array(new Uint8Array(await readFile(out)).buffer); // [tokens][layers][width]
    const got = new Uint16Array(rowsOf(restored, stream, first, last).buffer); // [layers][tokens][width]
    const width = got.length / layers / (last - first);
    let error = 0;
    let energy = 0;
    for (let i = 0; i < expected.length; i++) {
      const token = Math.floor(i / width / layers);
      const layer = Math.floor(i / width) % layers;
      const value = f16ToF32(got[(layer * (last - first) + token) * width + (i % width)] as number);
      error += (value - (expected[i] as number)) ** 2;
      energy += (expected[i] as number) ** 2;
    }
    // Products here are in q8_0, two of them.
    assert.ok(error < 5e-4 * energy, `${stream}: ${error / energy}`);
  }
});

test('damaged moments of tokens are refused', async () => {
  const bytes = await readFile(at('means.moments'));
  const text = bytes.toString('latin1');
  const bad = at('bad.moments');
  const again = {
    ...tinyCalibration(world.modelPath, at('never')),
    codec: 'wtc',
    sensitivity: at('steps.sensitivity'),
  } as const;
  for (const [from, to] of [
    ['"token.mean":{"dtype":"F64"', '"token.mean":{"dtype":"F32"'],
    ['"token.second"', '"token.secon_"'],
    ['"value.token"', '"value.toke_"'],
  ] as const) {
    assert.ok(text.includes(from));
    await writeFile(bad, Buffer.from(text.replace(from, to), 'latin1'));
    await assert.rejects(calibrate({ ...again, moments: bad }), hasCode('KVTC_MOMENTS_MALFORMED'));
  }
});
