// The whole way on tiny models of every RoPE kind: texts → profile → state → container → state, and all that can be wrong
// with what goes in.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { ErrorCode } from '../src/base/errors.ts';
import { isKvtcError } from '../src/base/errors.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { f16ToF32 } from '../src/base/half.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import type { Coder } from '../src/cache/coder.ts';
import { compress, openCoder } from '../src/cache/coder.ts';
import { compressPrompt, resume } from '../src/cache/prompt.ts';
import { memoryTarget } from '../src/container/target.ts';
import { openModel } from '../src/engines/llama/session.ts';
import { gatherRows, parseState, rowBytesOf } from '../src/engines/llama/state.ts';
import { writeTinyModel } from './tiny-gguf.ts';
import type { TinyWorld } from './tiny-world.ts';
import { TINY_TEXTS, makeTinyWorld, prefilledState, tinyCalibration } from './tiny-world.ts';

const LAYERS = 3;
const hasCode =
  (code: ErrorCode) =>
  (error: unknown): boolean =>
    isKvtcError(error, code);

function rowsOf(state: Uint8Array, stream: 'key' | 'value', startToken: number, endToken: number): Uint8Array {
  const view = parseState(state);
  const rows = new Uint8Array((endToken - startToken) * LAYERS * rowBytesOf(view, stream));
  gatherRows(view, stream, { startLayer: 0, endLayer: LAYERS }, { startToken, endToken }, rows);
  return rows;
}

function relativeError(exact: Uint8Array, restored: Uint8Array): number {
  const a = new Uint16Array(exact.buffer);
  const b = new Uint16Array(restored.buffer);
  let error = 0;
  let energy = 0;
  for (let i = 0; i < a.length; i++) {
    error += (f16ToF32(a[i] as number) - f16ToF32(b[i] as number)) ** 2;
    energy += f16ToF32(a[i] as number) ** 2;
  }
  return error / energy;
}

for (const kind of ['llama', 'qwen2', 'qwen3', 'llama3', 'yarn', 'linear', 'partial'] as const) {
  test(`${kind}: a cache comes back from its container, exact tokens to the bit, coded ones better at lower ratios`, async () => {
    const world = await makeTinyWorld(kind);
    const { state, tokens } = await prefilledState(world.modelPath, 700);
    const coder = await openCoder(world.profilePath);
    try {
      const errors: number[] = [];
      const sizes: number[] = [];
      for (const ratio of [2, 4, 8]) {
        const target = memoryTarget();
        const stored = await coder.compress(state, target, { ratio, tokens });
        const restored = await coder.restore(target.bytes());
        assert.deepEqual(restored.tokens, tokens);
        for (const stream of STREAMS) {
          assert.deepEqual(rowsOf(restored.state, stream, 0, 4), rowsOf(state, stream, 0, 4));
          assert.deepEqual(rowsOf(restored.state, stream, 572, 700), rowsOf(state, stream, 572, 700));
        }
        errors.push(
          Math.max(...STREAMS.map((s) => relativeError(rowsOf(state, s, 4, 572), rowsOf(restored.state, s, 4, 572)))),
        );
        sizes.push(stored.storedBytes);
        assert.equal(stored.storedBytes, target.bytes().length);
        assert.equal(
          stored.parts.reduce((sum, part) => sum + part.byteLength, 0),
          stored.storedBytes,
        );
      }
      assert.ok((errors[0] as number) < 0.01, `error ${errors[0]} at 2x`);
      assert.ok(errors[0]! < errors[1]! && errors[1]! < errors[2]! && errors[2]! < 0.7, `errors ${errors.join(', ')}`);
      assert.ok(sizes[0]! > sizes[1]! && sizes[1]! > sizes[2]!);
    } finally {
      await coder.close();
      await rm(world.directory, { recursive: true });
    }
  });
}

test('takes a q8_0 cache, whose rows come back as f16', async () => {
  const world = await makeTinyWorld('llama', { headDim: 32 });
  const coder = await openCoder(world.profilePath);
  const q8 = await prefilledState(world.modelPath, 300, { keyType: 'q8_0', valueType: 'q8_0' });
  const f16 = await prefilledState(world.modelPath, 300);
  const target = memoryTarget();
  const { rawBytes } = await coder.compress(q8.state, target, { ratio: 2, tokens: q8.tokens });
  assert.equal(rawBytes, 300 * LAYERS * 2 * 2 * 34);
  const restored = await coder.restore(target.bytes());
  assert.equal(parseState(restored.state).keyType, 'f16');
  for (const stream of STREAMS) {
    const error = relativeError(rowsOf(f16.state, stream, 0, 300), rowsOf(restored.state, stream, 0, 300));
    assert.ok(error < 0.01, `${stream} error ${error}`);
  }
  await coder.close();
  await rm(world.directory, { recursive: true });
});

describe('on a tiny llama', () => {
  let world: TinyWorld;
  let coder: Coder;
  let state: Uint8Array;
  let tokens: Int32Array;
  before(async () => {
    world = await makeTinyWorld('llama');
    coder = await openCoder(world.profilePath);
    ({ state, tokens } = await prefilledState(world.modelPath, 600));
  });
  after(async () => {
    await coder.close();
    await rm(world.directory, { recursive: true });
  });
  const packed = async (bytes: Uint8Array, options: Parameters<Coder['compress']>[2] = {}): Promise<Uint8Array> => {
    const target = memoryTarget();
    await coder.compress(bytes, target, { ratio: 2, ...options });
    return target.bytes();
  };

  test('equal input gives equal bytes', async () => {
    assert.deepEqual(await packed(state, { tokens }), await packed(state, { tokens }));
  });

  test('equal prefixes give equal chunks in the windowless mode', async () => {
    const { openContainer } = await import('../src/container/reader.ts');
    const longer = await prefilledState(world.modelPath, 1100);
    const [a, b] = await Promise.all(
      [state, longer.state].map(async (bytes) => openContainer(await packed(bytes, { window: 0 }))),
    );
    const full = a!.chunks.filter((chunk) => chunk.endToken - chunk.startToken === 256);
    assert.equal(full.length, 4);
    for (const [index, chunk] of full.entries()) {
      assert.deepEqual(await a!.readChunk(chunk), await b!.readChunk(b!.chunks[index]!));
    }
  });

  test('a layer range is the slice of the whole', async () => {
    const container = await packed(state, { tokens });
    const whole = await coder.restore(container);
    const middle = await coder.restoreLayers(container, { startLayer: 1, endLayer: 2 });
    for (const stream of STREAMS) {
      const all = rowsOf(whole.state, stream, 0, 600);
      const bytes = all.length / LAYERS;
      assert.ok(relativeError(all.slice(bytes, 2 * bytes), middle[stream]) < 1e-6);
    }
    await assert.rejects(
      coder.restoreLayers(container, { startLayer: 2, endLayer: 4 }),
      hasCode('KVTC_OPTION_INVALID'),
    );
  });

  test('the model goes on from a restored state as from its own, up to what the codec costs', async () => {
    const restored = await coder.restore(await packed(state, { tokens }));
    const model = await openModel(world.modelPath);
    const context = await model.createContext({ contextTokens: 1024 });
    const next = async (bytes: Uint8Array): Promise<Float32Array> => {
      context.clear();
      context.setState(bytes);
      await context.decode(tokens.slice(0, 32), { logits: 'last' });
      return context.logits(1).slice();
    };
    const exact = await next(state);
    const approximate = await next(restored.state);
    const scale = Math.max(...exact.map(Math.abs));
    const worst = Math.max(...exact.map((value, i) => Math.abs(value - (approximate[i] as number))));
    assert.ok(worst > 0 && worst < 0.2 * scale, `worst ${worst} of ${scale}`);
    model.close();
  });

  for (const options of [
    { flashAttention: false },
    { keyType: 'f32', valueType: 'f32' },
    { keyType: 'bf16', valueType: 'bf16' },
  ] as const) {
    test(`takes states of contexts with ${JSON.stringify(options)}`, async () => {
      const other = await prefilledState(world.modelPath, 300, options);
      const view = parseState(other.state);
      const { vTransposed } = view;
      const restored = await coder.restore(await packed(other.state, { tokens: other.tokens }), { vTransposed });
      assert.equal(restored.state.length, other.state.length);
      const model = await openModel(world.modelPath);
      const context = await model.createContext({ contextTokens: 512, ...options });
      context.setState(restored.state);
      assert.deepEqual(context.positionRange(0), { startPosition: 0, endPosition: 300 });
      model.close();
    });
  }

  test('state files go in and come out, with their token ids', async () => {
    const { convertState } = await import('../src/engines/llama/state.ts');
    const file = convertState(state, 'file', tokens);
    const restored = await coder.restore(await packed(file), { format: 'file' });
    assert.deepEqual(parseState(restored.state).tokens, tokens);
    assert.equal(restored.state.length, file.length);
    const withoutIds = await packed(state);
    await assert.rejects(coder.restore(withoutIds, { format: 'file' }), hasCode('KVTC_STATE_UNSUPPORTED'));
  });

  test('sequences of one token, or no longer than sinks and window, are kept exact', async () => {
    for (const count of [1, 3, 132]) {
      const short = await prefilledState(world.modelPath, count);
      const restored = await coder.restore(await packed(short.state, { tokens: short.tokens }));
      assert.deepEqual(restored.state, short.state);
    }
  });

  test('further exact ranges, other windows and chunk lengths, zstd and no entropy stage all come back', async () => {
    const exactRanges = [{ startToken: 100, endToken: 117 }];
    for (const options of [
      { exactRanges },
      { window: 0, sinks: 0 },
      { chunkTokens: 33 },
      { entropy: 'zstd' },
      { entropy: 'none' },
    ] as const) {
      const restored = await coder.restore(await packed(state, { tokens, ...options }));
      assert.ok(relativeError(rowsOf(state, 'key', 0, 600), rowsOf(restored.state, 'key', 0, 600)) < 0.01);
      if ('exactRanges' in options)
        assert.deepEqual(rowsOf(restored.state, 'value', 100, 117), rowsOf(state, 'value', 100, 117));
    }
  });

  test('NaN and Inf in coded rows are refused, and nothing is written', async () => {
    for (const bits of [0x7e00, 0x7c00]) {
      const broken = state.slice();
      const view = parseState(broken);
      const rows = rowsOf(broken, 'value', 300, 301);
      new DataView(rows.buffer).setUint16(10, bits, true);
      const { scatterRows } = await import('../src/engines/llama/state.ts');
      scatterRows(view, 'value', { startLayer: 0, endLayer: LAYERS }, { startToken: 300, endToken: 301 }, rows);
      const output = join(world.directory, 'never.kvtc');
      await assert.rejects(
        compress({ profile: world.profilePath, state: broken, output, ratio: 2 }),
        hasCode('KVTC_ROWS_NOT_FINITE'),
      );
      assert.ok(!existsSync(output) && !existsSync(`${output}.part`));
    }
  });

  test('another model, another profile, another ratio, a truncated or foreign state are refused by name', async () => {
    const otherModel = join(world.directory, 'other.gguf');
    const otherProfile = join(world.directory, 'other.safetensors');
    await writeTinyModel(otherModel, 'llama', { seed: 2 });
    await calibrate({ ...tinyCalibration(otherModel, otherProfile) });
    const sameModel = join(world.directory, 'same.safetensors');
    await calibrate({ ...tinyCalibration(world.modelPath, sameModel), seed: 8 });
    const container = await packed(state, { tokens });
    const wrongModel = await openCoder(otherProfile);
    await assert.rejects(wrongModel.restore(container), hasCode('KVTC_MODEL_MISMATCH'));
    await wrongModel.close();
    const wrongProfile = await openCoder(sameModel);
    await assert.rejects(wrongProfile.restore(container), hasCode('KVTC_PROFILE_MISMATCH'));
    await wrongProfile.close();
    await assert.rejects(
      resume({ model: otherModel, profile: world.profilePath, container, prompt: 'x' }),
      hasCode('KVTC_MODEL_MISMATCH'),
    );
    await assert.rejects(packed(state, { ratio: 3 }), hasCode('KVTC_PLAN_MISSING'));
    await assert.rejects(packed(state.slice(0, -1)), hasCode('KVTC_STATE_MALFORMED'));
    await assert.rejects(packed(new Uint8Array(0)), hasCode('KVTC_STATE_MALFORMED'));
    const wide = join(world.directory, 'wide.gguf');
    await writeTinyModel(wide, 'llama', { layers: 2 });
    await assert.rejects(packed((await prefilledState(wide, 200)).state), hasCode('KVTC_STATE_MISMATCH'));
  });

  test('prompts: empty and too long ones are refused, others are kept and resumed', async () => {
    const output = join(world.directory, 'prompt.kvtc');
    const options = { model: world.modelPath, profile: world.profilePath, output, ratio: 2 };
    await assert.rejects(compressPrompt({ ...options, prompt: 'a'.repeat(5000) }), hasCode('KVTC_PROMPT_TOO_LONG'));
    const model = await openModel(world.modelPath);
    if (!model.addBos) await assert.rejects(compressPrompt({ ...options, prompt: '' }), hasCode('KVTC_PROMPT_EMPTY'));
    model.close();
    const kept = await compressPrompt({ ...options, prompt: 'some words that stay '.repeat(20) });
    const resumed = await resume({ ...options, container: output, prompt: ' and more', maxTokens: 5 });
    assert.equal(resumed.restoredTokens, kept.tokenCount);
    assert.ok(resumed.tokens.length <= 5);
    const again = await resume({ ...options, container: output, prompt: '', maxTokens: 5 });
    assert.ok(again.tokens.length > 0);
  });

  test('an abort stops compress and restore and leaves no file', async () => {
    const output = join(world.directory, 'aborted.kvtc');
    const controller = new AbortController();
    const onEvent = (): void => controller.abort();
    await assert.rejects(
      compress({
        profile: coder.profile,
        state,
        output,
        ratio: 2,
        chunkTokens: 16,
        signal: controller.signal,
        onEvent,
      }),
      hasCode('KVTC_ABORTED'),
    );
    assert.ok(!existsSync(output) && !existsSync(`${output}.part`));
    const container = await packed(state, { chunkTokens: 16 });
    await assert.rejects(coder.restore(container, { signal: AbortSignal.abort() }), hasCode('KVTC_ABORTED'));
  });

  test('a restore does not allocate more state than it may', async () => {
    const container = await packed(state);
    await assert.rejects(coder.restore(container, { maxStateBytes: 1000 }), hasCode('KVTC_CONTAINER_LIMIT'));
  });

  test('calibration resumes after an abort, and parts add up, to the bytes of one run', async () => {
    const expected = await readFile(world.profilePath);
    const output = join(world.directory, 'resumed.safetensors');
    const options = tinyCalibration(world.modelPath, output);
    const controller = new AbortController();
    const onEvent = (event: { type: string; phase?: string; done?: number }): void => {
      if (event.phase === 'moments' && (event.done ?? 0) > 1000) controller.abort();
    };
    await assert.rejects(calibrate({ ...options, signal: controller.signal, onEvent }), hasCode('KVTC_ABORTED'));
    assert.ok(!existsSync(output));
    assert.ok((await readdir(`${output}.work`)).includes('progress.json'));
    await assert.rejects(calibrate({ ...options, seed: 8 }), hasCode('KVTC_MOMENTS_MISMATCH'));
    let calls = 0;
    await calibrate({
      ...options,
      onEvent: (event) => (calls += event.type === 'progress' && event.phase === 'moments' ? 1 : 0),
    });
    assert.ok(calls > 0);
    assert.deepEqual(await readFile(output), expected);
    assert.ok(!existsSync(`${output}.work`));

    const parts = [0, 1].map((index) => join(world.directory, `part-${index}`));
    for (const [index, workDirectory] of parts.entries()) {
      const partial = await calibrate({ ...options, workDirectory, part: { index, count: 2 } });
      assert.equal(partial.profileId, null);
    }
    const merged = join(world.directory, 'merged.safetensors');
    await calibrate({ ...options, output: merged, parts });
    assert.deepEqual(await readFile(merged), expected);
  });

  test('calibration texts that are too short are refused', async () => {
    const output = join(world.directory, 'short.safetensors');
    const texts = [{ name: 'short', texts: [{ source: 'short', text: 'a few words' }] }];
    await assert.rejects(
      calibrate({ ...tinyCalibration(world.modelPath, output), texts }),
      hasCode('KVTC_CALIBRATION_TEXT_SHORT'),
    );
    await assert.rejects(
      calibrate({
        ...tinyCalibration(world.modelPath, output),
        tokens: 600,
        documentTokens: 600,
        texts: TINY_TEXTS.slice(0, 1),
      }),
      hasCode('KVTC_CALIBRATION_TEXT_SHORT'),
    );
    await assert.rejects(
      calibrate({ ...tinyCalibration(world.modelPath, output), tokens: 5 }),
      hasCode('KVTC_OPTION_INVALID'),
    );
  });
});
