// The codec wtc the whole way on tiny models: texts → profile → state → container → state, and all that can be wrong.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import type { ErrorCode } from '../src/base/errors.ts';
import { isKvtcError } from '../src/base/errors.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { f16ToF32 } from '../src/base/half.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import { compressState } from '../src/cache/compress.ts';
import { inspect } from '../src/cache/inspect.ts';
import { restoreLayers } from '../src/cache/restore.ts';
import { openTransforms } from '../src/cache/transforms.ts';
import { readSensitivity, writeSensitivity } from '../src/calibration/sensitivity-file.ts';
import { canonicalJson } from '../src/container/canonical-json.ts';
import { SectionKind } from '../src/container/format.ts';
import { timeEntropy } from '../src/evaluation/entropy-speed.ts';
import { openContainer } from '../src/container/reader.ts';
import { readGguf } from '../src/engines/llama/gguf.ts';
import { gatherRows, parseState, rowBytesOf } from '../src/engines/llama/state.ts';
import { openReferenceBackend } from '../src/linalg/reference.ts';
import { openProfile, verifyProfile } from '../src/profile/open-profile.ts';
import { replaceSection } from './container-surgery.ts';
import { tinyCalibration } from './tiny-world.ts';
import { TOKENS, makeWtcWorld, withCoder } from './wtc-world.ts';

const decoder = join(import.meta.dirname, '..', 'reference', 'decode.py');
const { world, layers, state, tokens, paths, rowsOf, relativeError, through } = await makeWtcWorld();
const hasCode =
  (code: ErrorCode) =>
  (error: unknown): boolean =>
    isKvtcError(error, code);

for (const name of ['plain', 'weighted', 'steps'] as const) {
  test(`${name}: ratios come near what was asked for, and cost more error the higher they are`, async () => {
    await verifyProfile(paths[name]);
    await withCoder(paths[name], async (coder) => {
      let before = { bytes: Infinity, error: 0 };
      for (const ratio of [8, 12, 18, 30]) {
        const { bytes, restored, paperRatio } = await through(coder, { ratio, window: 0 });
        const error = relativeError(restored, 4, TOKENS);
        assert.ok(paperRatio > 0.6 * ratio && paperRatio < 1.4 * ratio, `${paperRatio} at ${ratio}`);
        assert.ok(bytes.length < before.bytes && error > before.error, `${bytes.length} bytes, error ${error}`);
        assert.ok(error < 0.9);
        before = { bytes: bytes.length, error };
        assert.deepEqual(rowsOf(restored, 'key', 0, 1), rowsOf(state, 'key', 0, 1), 'the first token is exact');
      }
    });
  });
}

test('weighted profiles carry their metric, and spend more on heads that matter', async () => {
  const profile = await openProfile(paths.weighted);
  assert.ok(profile.codec === 'wtc');
  assert.ok('packed' in profile.stream('key').analysis);
  assert.equal(profile.predictor, null);
  await profile.close();
  const perHead = async (path: string): Promise<number> =>
    withCoder(path, async (coder) => {
      const { restored } = await through(coder, { ratio: 16, window: 0 });
      const { kvHeads, keyHeadDim } = coder.profile.model.geometry;
      const a = new Uint16Array(rowsOf(state, 'key', 4, TOKENS).buffer);
      const b = new Uint16Array(rowsOf(restored, 'key', 4, TOKENS).buffer);
      const perLayer = a.length / layers;
      const errorOf = (layer: number): number => {
        let error = 0;
        for (let i = layer * perLayer; i < (layer + 1) * perLayer; i++) {
          error += (f16ToF32(a[i] as number) - f16ToF32(b[i] as number)) ** 2;
        }
        return error;
      };
      assert.ok(kvHeads * keyHeadDim > 0);
      return errorOf(layers - 1) / errorOf(0);
    });
  assert.ok((await perHead(paths.weighted)) < (await perHead(paths.plain)));
});

for (const name of ['none', 'weighted'] as const) {
  test(`a basis joins no more layers than asked for, sensitivity ${name}`, async () => {
    const path = join(world.directory, `grouped ${name}`);
    const sensitivity = name === 'none' ? name : `${paths.weighted}.sensitivity`;
    await calibrate({ ...tinyCalibration(world.modelPath, path), codec: 'wtc', sensitivity, layersPerBasis: 1 });
    const profile = await openProfile(path);
    try {
      const { synthesis } = profile.stream('value');
      const { rows, columns } = synthesis;
      const values = new Float32Array(rows * columns);
      await synthesis.read(0, rows, values);
      const seen = new Set<number>();
      for (let row = 0; row < rows; row++) {
        const own = values.subarray(row * columns, (row + 1) * columns);
        const joined = new Set([...own].flatMap((v, i) => (v === 0 ? [] : [Math.floor((i * layers) / columns)])));
        assert.ok(joined.size <= 1, `component ${row} joins ${joined.size} layers`);
        for (const layer of joined) seen.add(layer);
      }
      assert.equal(seen.size, layers);
    } finally {
      await profile.close();
    }
  });
}

test('token steps differ between tokens and are carried by the file alone', async () => {
  const profile = await openProfile(paths.steps);
  assert.ok(profile.codec === 'wtc' && profile.predictor !== null);
  assert.ok(profile.steps.every(({ exponent }) => exponent === 0.3));
  await profile.close();
  await withCoder(paths.steps, async (coder) => {
    const { restored } = await through(coder, { ratio: 12, window: 0 });
    const errors = Array.from({ length: 600 }, (_, t) => relativeError(restored, 10 + t, 11 + t));
    const log = (t: number): number => Math.log2(errors[t - 10] as number);
    const important: number[] = [];
    const others: number[] = [];
    for (let t = 10; t < 610; t++) (Math.sin((tokens[t] as number) * 1.7) > 0 ? important : others).push(log(t));
    const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    assert.ok(mean(important) < mean(others), `${mean(important)} and ${mean(others)}`);
  });
});

test('a range of layers comes back as in the whole', async () => {
  await withCoder(paths.weighted, async (coder) => {
    const { bytes, restored } = await through(coder, { ratio: 16 });
    const part = await coder.restoreLayers(bytes, { startLayer: 1, endLayer: 2 });
    for (const stream of STREAMS) {
      const view = parseState(restored);
      const rows = new Uint8Array(TOKENS * rowBytesOf(view, stream));
      gatherRows(view, stream, { startLayer: 1, endLayer: 2 }, { startToken: 0, endToken: TOKENS }, rows);
      assert.deepEqual(part[stream], rows);
    }
  });
});

test('the independent decoder rebuilds the same rows', async () => {
  const containerPath = join(world.directory, 'reference.kvtc');
  const profile = await openProfile(paths.steps);
  const backend = openReferenceBackend();
  const transforms = openTransforms(profile, backend, { precision: 'f32' });
  const range = { startToken: 560, endToken: 600 };
  try {
    await compressState(state, transforms, containerPath, { ratio: 12, tokens });
    const container = await openContainer(containerPath);
    const rows = await restoreLayers(container, transforms, { startLayer: 0, endLayer: layers });
    await container.close();
    for (const stream of STREAMS) {
      const out = join(world.directory, `${stream}.rows`);
      const words = ['rows', containerPath, '--profile', paths.steps, '--stream', stream, '--tokens', '560:600'];
      await promisify(execFile)('python3', [decoder, ...words, '-o', out]);
      const expected = new Float32Array(new Uint8Array(await readFile(out)).buffer); // [tokens][layers][width]
      const got = new Uint16Array(rows[stream].buffer); // [layers][all tokens][width]
      const width = got.length / layers / TOKENS;
      assert.equal(expected.length, layers * width * (range.endToken - range.startToken));
      for (let i = 0; i < expected.length; i++) {
        const token = range.startToken + Math.floor(i / width / layers);
        const layer = Math.floor(i / width) % layers;
        const value = f16ToF32(got[(layer * TOKENS + token) * width + (i % width)] as number);
        const reference = expected[i] as number;
        const allowed = Math.abs(reference) * 2 ** -11 + 1e-4;
        assert.ok(Math.abs(value - reference) <= allowed, `${stream} token ${token}: ${value}, ${reference}`);
      }
    }
  } finally {
    transforms.close();
    backend.close();
    await profile.close();
  }
});

test('the same cache gives the same container, and the same texts the same profile', async () => {
  await withCoder(paths.steps, async (coder) => {
    assert.deepEqual((await through(coder, {})).bytes, (await through(coder, {})).bytes);
  });
  const again = join(world.directory, 'again');
  await calibrate({ ...tinyCalibration(world.modelPath, again), codec: 'wtc', sensitivity: 'none' });
  assert.deepEqual(await readFile(again), await readFile(paths.plain));
});

test('a sensitivity of too few tokens is refused before anything is computed', async () => {
  const whole = await readSensitivity(`${paths.steps}.sensitivity`);
  assert.ok(whole.importance !== null);
  const known = { key: whole.importance.key.slice(), value: whole.importance.value.slice() };
  known.key.fill(NaN, 300);
  const few = join(world.directory, 'few.sensitivity');
  await writeSensitivity(few, { ...whole, importance: { ...whole.importance, ...known } });
  const phases = new Set<string>();
  const options = {
    ...tinyCalibration(world.modelPath, join(world.directory, 'few')),
    codec: 'wtc',
    sensitivity: few,
  } as const;
  await assert.rejects(
    calibrate({ ...options, onEvent: (event) => event.type === 'progress' && phases.add(event.phase) }),
    hasCode('KVTC_CALIBRATION_TEXT_SHORT'),
  );
  assert.ok(!phases.has('basis'), [...phases].join());
});

test('sensitivity is measured by forward passes unless told otherwise, and kept with the work', async () => {
  const output = join(world.directory, 'measured');
  const options = { ...tinyCalibration(world.modelPath, output), codec: 'wtc', keepWork: true } as const;
  const result = await calibrate(options);
  assert.equal(result.sensitivity, 'forward');
  assert.ok(result.sensitivityMs > 0 && result.predicted !== null);
  const kept = join(`${output}.work`, 'sensitivity.safetensors');
  assert.equal((await readSensitivity(kept)).method, 'forward');
  const bytes = await readFile(output);
  const again = await calibrate({ ...options, sensitivity: kept });
  assert.deepEqual([again.sensitivity, again.sensitivityMs], ['forward', 0]);
  assert.deepEqual(await readFile(output), bytes, 'measured or read, the profile is the same');
  const weighed = await calibrate({ ...options, output: `${output}.weighed`, exactModel: world.modelPath });
  assert.ok(weighed.layersWeighed && !result.layersWeighed);
  assert.notEqual(weighed.profileId, result.profileId);
  // A file that holds nothing after its prefixes has no losses to weigh by.
  await assert.rejects(
    calibrate({ ...options, sensitivity: kept, exactModel: world.modelPath }),
    hasCode('KVTC_OPTION_INVALID'),
  );
  for (const [path, method] of [
    [output, 'forward'],
    [paths.plain, 'none'],
  ] as const) {
    const profile = await openProfile(path);
    await profile.close();
    assert.equal(profile.provenance.sensitivity, method);
  }
});

test('a step may be given instead of a ratio', async () => {
  await withCoder(paths.weighted, async (coder) => {
    assert.ok(coder.profile.codec === 'wtc');
    const point = coder.profile.steps[5];
    assert.ok(point !== undefined);
    const byStep = await through(coder, { step: 2 ** (point.key.stepIndex / 256) });
    const byRatio = await through(coder, { ratio: point.ratio });
    assert.deepEqual(byStep.bytes, byRatio.bytes);
  });
});

test('settings of the other codec are refused by both', async () => {
  await withCoder(paths.plain, async (coder) => {
    for (const options of [{ keyRatio: 8 }, { entropy: 'deflate' }, { step: -1 }, { step: NaN }] as const) {
      await assert.rejects(through(coder, options), hasCode('KVTC_OPTION_INVALID'));
    }
    await assert.rejects(through(coder, { ratio: 1.5 }), hasCode('KVTC_PLAN_MISSING'));
    await assert.rejects(through(coder, { ratio: 1e6 }), hasCode('KVTC_PLAN_MISSING'));
  });
  await withCoder(world.profilePath, async (coder) => {
    for (const options of [
      { ratio: 8, step: 1 },
      { ratio: 8, windowMode: 'finer' },
      { ratio: 8, sinkMode: 'finer' },
    ] as const) {
      await assert.rejects(through(coder, options), hasCode('KVTC_OPTION_INVALID'));
    }
  });
  await assert.rejects(
    calibrate({ ...tinyCalibration(world.modelPath, join(world.directory, 'no')), exponent: 0.3 }),
    hasCode('KVTC_OPTION_INVALID'),
  );
});

test('a container is refused by every profile but its own', async () => {
  const { bytes } = await withCoder(paths.plain, (coder) => through(coder, {}));
  for (const path of [world.profilePath, paths.weighted]) {
    await withCoder(path, (coder) => assert.rejects(coder.restore(bytes), hasCode('KVTC_PROFILE_MISMATCH')));
  }
});

test('hostile parameters end in codes', async () => {
  const { bytes } = await withCoder(paths.plain, (coder) => through(coder, {}));
  const stream = { stepIndex: 0, rank: 16, cut: -5 };
  const cases: readonly (readonly [ErrorCode, Record<string, unknown>])[] = [
    ['KVTC_CODEC_UNKNOWN', { codec: 'wtc2' }],
    ['KVTC_PROFILE_MISMATCH', { codec: 'kvtc-paper' }],
    ['KVTC_CONTAINER_MALFORMED', { entropy: 'deflate' }],
    ['KVTC_CONTAINER_MALFORMED', { codecParameters: {} }],
    ['KVTC_CONTAINER_MALFORMED', { codecParameters: { key: stream, value: { ...stream, rank: 17 } } }],
    ['KVTC_CONTAINER_MALFORMED', { codecParameters: { key: stream, value: { ...stream, stepIndex: 1e9 } } }],
    ['KVTC_PROFILE_MISMATCH', { codecParameters: { key: stream, value: { ...stream, rank: 1 << 20 } } }],
    ['KVTC_CONTAINER_MALFORMED', { codecParameters: { key: { ...stream, expected: 32 }, value: stream } }],
    ['KVTC_PROFILE_MISMATCH', { codecParameters: { key: { ...stream, expected: 16 }, value: stream } }],
    ['KVTC_CHUNK_MALFORMED', { codecParameters: { key: stream, value: stream } }],
  ];
  await withCoder(paths.plain, async (coder) => {
    for (const [code, changes] of cases) {
      const changed = replaceSection(bytes, SectionKind.header, (header) => {
        const parsed = JSON.parse(Buffer.from(header).toString()) as Record<string, unknown>;
        return Buffer.from(canonicalJson({ ...parsed, ...changes }));
      });
      await assert.rejects(coder.restore(changed), hasCode(code), `${code} for ${JSON.stringify(changes)}`);
    }
  });
});

test('inspect tells what the profile serves', async () => {
  const found = await inspect(paths.steps);
  assert.ok(found.kind === 'profile');
  assert.equal(found.codec, 'wtc');
  assert.deepEqual(found.plans, []);
  assert.ok(found.steps.length > 10);
  const { layers: depth, kvHeads, keyHeadDim, valueHeadDim } = found.model.geometry;
  const width = depth * kvHeads;
  // Weighted: a metric beside the synthesis.
  const entries = (rank: number, dim: number): number => width * (rank * dim + (dim * (dim + 1)) / 2);
  assert.equal(found.matrixEntries, entries(found.rank.key, keyHeadDim) + entries(found.rank.value, valueHeadDim));
  const parameters = found.provenance.modelParameters ?? NaN;
  const gguf = await readGguf(world.modelPath);
  assert.equal(
    parameters,
    [...gguf.tensors.values()].reduce((sum, { dims }) => sum + dims.reduce((a, b) => a * b, 1), 0),
  );
  assert.equal(found.parameterShare, found.matrixEntries / parameters);
});

test('the entropy stage is timed on a container’s own chunks', async () => {
  await withCoder(paths.steps, async (coder) => {
    assert.ok(coder.profile.codec === 'wtc');
    for (const ratio of [8, 16]) {
      const { bytes } = await through(coder, { ratio });
      const container = await openContainer(bytes);
      const { symbols, decodeMs, encodeMs } = await timeEntropy(container, coder.profile, 3);
      const most = container.chunks.reduce((sum, chunk) => sum + chunk.endToken - chunk.startToken, 0) * 1e4;
      assert.ok(symbols > 0 && symbols < most && symbols % 2 === 0);
      assert.deepEqual([decodeMs.length, encodeMs.length], [3, 3]);
      await container.close();
    }
  });
});
