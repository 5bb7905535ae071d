import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { writeTinyModel } from '../../../test/tiny-gguf.ts';
import { isKvtcError } from '../../base/errors.ts';
import { rotationSize, retypeState } from './retype-state.ts';
import { openModel } from './session.ts';
import type { TappedTensor } from './session.ts';
import { gatherRows, parseState } from './state.ts';
import type { StateView } from './state.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-retype-'));
});
after(() => rm(folder, { recursive: true }));

function f32Rows(view: StateView, stream: 'key' | 'value', layer: number): Float32Array {
  const rows = new Uint8Array(view.tokenCount * (stream === 'key' ? view.keyRowBytes : view.valueRowBytes));
  const tokens = { startToken: 0, endToken: view.tokenCount };
  gatherRows(view, stream, { startLayer: layer, endLayer: layer + 1 }, tokens, rows);
  return new Float32Array(rows.buffer);
}

/** Root mean square of the difference over that of `expected`. */
function relativeError(got: Float32Array, expected: Float32Array): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < got.length; i++) {
    difference += (got[i]! - expected[i]!) ** 2;
    size += expected[i]! ** 2;
  }
  return Math.sqrt(difference / size);
}

for (const headDim of [32, 64, 128]) {
  test(`reads the engine's q8_0 rows of ${headDim} dims as its tensors, and writes them as it does`, async () => {
    const path = join(folder, `${headDim}.gguf`);
    await writeTinyModel(path, 'llama', { headDim, heads: 2, layers: 2 });
    const model = await openModel(path, { threads: 1 });
    const { geometry } = model.identity;
    const taps = new Map<string, TappedTensor>();
    const context = await model.createContext({
      contextTokens: 512,
      keyType: 'q8_0',
      valueType: 'q8_0',
      tap: {
        wants: (name, operation) => (/^Kcur-\d/.test(name) ? operation === 'ROPE' : /^Vcur-\d/.test(name)),
        take: (tensor) => taps.set(tensor.name, tensor),
      },
    });
    const tokens = model.tokenize('and the other thing is that all of this is only a test of rows '.repeat(5));
    await context.decode(tokens, { logits: 'none' });
    const state = context.getState();
    const view = parseState(state);
    const plain = retypeState(view, geometry, { keyType: 'f32', valueType: 'f32' }).view;
    for (let layer = 0; layer < geometry.layers; layer++) {
      for (const [stream, tap] of [
        ['key', taps.get(`Kcur-${layer}`)],
        ['value', taps.get(`Vcur-${layer}`)],
      ] as const) {
        assert.ok(tap !== undefined);
        const error = relativeError(f32Rows(plain, stream, layer), tap.values);
        assert.ok(error < 0.01, `${stream} of layer ${layer}: ${error}`);
      }
    }
    if (headDim >= 64) {
      const unturned = retypeState(view, geometry, { keyType: 'f32', valueType: 'f32', rotated: false }).view;
      assert.ok(relativeError(f32Rows(unturned, 'key', 0), f32Rows(plain, 'key', 0)) > 0.5);
    }
    // Back again: f32 sums in another order may move a code or a scale by one step, here and there.
    const again = retypeState(plain, geometry, { keyType: 'q8_0', valueType: 'q8_0' }).state;
    const same = again.filter((byte, i) => byte === state[i]).length;
    assert.ok(again.length === state.length && same > 0.99 * state.length, `${same} of ${state.length}`);
    await context.decode(tokens.subarray(0, 9), { logits: 'all' });
    const expected = context.logits(9).slice();
    context.clear();
    context.setState(again);
    await context.decode(tokens.subarray(0, 9), { logits: 'all' });
    assert.ok(relativeError(context.logits(9), expected) < 0.01);
    model.close();
  });
}

test('turns as the engine does: not at all, or by the largest block that divides a key', () => {
  const sizes = [32, 64, 80, 128, 192, 256].map((dim) => [rotationSize('key', dim), rotationSize('value', dim)]);
  assert.deepEqual(sizes, [
    [1, 1],
    [64, 64],
    [1, 1],
    [128, 64],
    [64, 64],
    [256, 64],
  ]);
});

test('converts between the float types and refuses what does not fit', async () => {
  const path = join(folder, 'floats.gguf');
  await writeTinyModel(path, 'llama');
  const model = await openModel(path, { threads: 1 });
  const { geometry } = model.identity;
  const context = await model.createContext({
    contextTokens: 256,
    keyType: 'f32',
    valueType: 'f32',
    flashAttention: false,
  });
  await context.decode(model.tokenize('the thing'), { logits: 'none' });
  const view = parseState(context.getState());
  for (const [type, tolerance] of [
    ['f16', 5e-4],
    ['bf16', 4e-3],
    ['f32', 0],
  ] as const) {
    const there = retypeState(view, geometry, { keyType: type, valueType: type, vTransposed: false }).view;
    assert.deepEqual([there.keyType, there.vTransposed, there.kind], [type, false, 'blob']);
    const back = retypeState(there, geometry, { keyType: 'f32', valueType: 'f32' }).view;
    for (const stream of ['key', 'value'] as const) {
      assert.ok(relativeError(f32Rows(back, stream, 1), f32Rows(view, stream, 1)) <= tolerance);
    }
  }
  const code = (name: string) => (error: unknown) => isKvtcError(error) && error.code === name;
  const q8 = { keyType: 'q8_0', valueType: 'q8_0' } as const;
  assert.throws(() => retypeState(view, geometry, q8), code('KVTC_STATE_UNSUPPORTED'));
  assert.throws(() => retypeState(view, { ...geometry, kvHeads: 4 }, q8), code('KVTC_STATE_MISMATCH'));
  assert.throws(() => retypeState(view, geometry, { ...q8, vTransposed: true }), code('KVTC_STATE_UNSUPPORTED'));
  model.close();
});
