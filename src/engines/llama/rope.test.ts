import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { TINY_KINDS, writeTinyModel } from '../../../test/tiny-gguf.ts';
import { decodeF16 } from '../../base/half.ts';
import { applyRope, undoRope } from '../../rope/rotate.ts';
import { openModel } from './session.ts';
import type { TappedTensor } from './session.ts';
import { gatherRows, parseState } from './state.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-rope-'));
});
after(() => rm(folder, { recursive: true }));

const TEXT = 'the quick brown fox and another thing';

/** Largest difference, relative to the largest value of `expected`. */
function worst(got: Float32Array, expected: Float32Array): number {
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < got.length; i++) {
    difference = Math.max(difference, Math.abs(got[i]! - expected[i]!));
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return difference / largest;
}

for (const kind of TINY_KINDS) {
  for (const [cache, startPosition, tolerance] of [
    ['f32', 0, 1e-6],
    ['f32', 30_000, 1e-6],
    ['f16', 0, 6e-4],
  ] as const) {
    test(`undoes RoPE of ${kind} keys to the engine's own, ${cache} cache from position ${startPosition}`, async () => {
      const path = join(folder, `${kind}.gguf`);
      await writeTinyModel(path, kind);
      const model = await openModel(path, { threads: 1 });
      const taps = new Map<string, TappedTensor>();
      const context = await model.createContext({
        contextTokens: 30_208,
        keyType: cache,
        valueType: cache,
        flashAttention: false,
        tap: {
          wants: (name) => /^[KV]cur(_normed)?-\d+$/.test(name),
          take: (tensor) => taps.set(`${tensor.name} ${tensor.operation}`, tensor),
        },
      });
      await context.decode(model.tokenize(TEXT), { startPosition, logits: 'none' });
      const view = parseState(context.getState());
      const { geometry, rope } = model.identity;
      const shape = { heads: geometry.kvHeads, headDim: geometry.keyHeadDim };
      for (let layer = 0; layer < geometry.layers; layer++) {
        const read = (stream: 'key' | 'value', rowBytes: number): Float32Array => {
          const rows = new Uint8Array(view.tokenCount * rowBytes);
          const tokens = { startToken: 0, endToken: view.tokenCount };
          gatherRows(view, stream, { startLayer: layer, endLayer: layer + 1 }, tokens, rows);
          if (cache === 'f32') return new Float32Array(rows.buffer);
          const values = new Float32Array(rows.length / 2);
          decodeF16(new Uint16Array(rows.buffer), values);
          return values;
        };
        const rotated = taps.get(`Kcur-${layer} ROPE`);
        const normed = taps.get(`Kcur_normed-${layer} MUL`);
        const before =
          normed ?? [...taps.values()].findLast((t) => t.name === `Kcur-${layer}` && t.operation !== 'ROPE');
        const value = [...taps.values()].findLast((t) => t.name === `Vcur-${layer}`);
        assert.ok(rotated !== undefined && before !== undefined && value !== undefined);
        const keys = read('key', view.keyRowBytes);
        assert.ok(worst(keys, rotated.values) <= (cache === 'f32' ? 0 : tolerance));
        assert.ok(worst(read('value', view.valueRowBytes), value.values) <= (cache === 'f32' ? 0 : tolerance));
        const undone = new Float32Array(keys.length);
        undoRope(keys, view.positions, rope, shape, undone);
        assert.ok(worst(undone, before.values) < tolerance, `layer ${layer}: ${worst(undone, before.values)}`);
        const redone = new Float32Array(keys.length);
        applyRope(before.values, view.positions, rope, shape, redone);
        assert.ok(worst(redone, rotated.values) < 1e-6);
        if (startPosition > 0) assert.ok(worst(keys, before.values) > 0.1, 'the rotation is not trivial');
      }
      model.close();
    });
  }
}
