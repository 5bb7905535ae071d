// Rivals' quantisers on values computed by hand and on properties that hold for all.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../../base/errors.ts';
import type { StreamKind } from '../../base/geometry.ts';
import { f16ToF32, f32ToF16 } from '../../base/half.ts';
import { seededRandom } from '../../base/random.ts';
import type { LayerRows, RowCodec } from './row-codecs.ts';
import { fp8PerHead, kivi, q4_0, q4_1, q8_0, roundE4m3 } from './row-codecs.ts';

function layerOf(rows: Float32Array, tokens: number, stream: StreamKind = 'key', heads = 1): LayerRows {
  return { stream, tokens, heads, headDim: rows.length / tokens / heads, rows };
}

function randomRows(tokens: number, width: number, seed = 1): Float32Array {
  const random = seededRandom(seed);
  return Float32Array.from({ length: tokens * width }, () => random.normal());
}

const half = (value: number): number => f16ToF32(f32ToF16(value));

function relativeError(codec: RowCodec, stream: StreamKind): number {
  const exact = randomRows(256, 64);
  const rows = exact.slice();
  codec.apply(layerOf(rows, 256, stream));
  const energy = exact.reduce((sum, x) => sum + x * x, 0);
  return exact.reduce((sum, x, i) => sum + (x - (rows[i] as number)) ** 2, 0) / energy;
}

describe('rivals on rows', () => {
  it('store the bits per value that their formats have', () => {
    const bitsOf = (codec: RowCodec, tokens: number): number => codec.apply(layerOf(randomRows(tokens, 64), tokens));
    const values = 256 * 64;
    assert.equal(bitsOf(q8_0, 256), values * 8.5);
    assert.equal(bitsOf(q4_0, 256), values * 4.5);
    assert.equal(bitsOf(q4_1, 256), values * 5);
    assert.equal(bitsOf(fp8PerHead, 256), values * 8);
    // 256 − 128 residual = 128 coded tokens; of 150 tokens 22 are past the window, none of them a whole group.
    assert.equal(bitsOf(kivi(2), 256), 128 * 64 * 3);
    assert.equal(bitsOf(kivi(4), 256), 128 * 64 * 5);
    assert.equal(bitsOf(kivi(2), 150), 22 * 64 * 16);
    assert.equal(bitsOf(kivi(2), 10), 0);
  });

  it('rank by error as their bits say', () => {
    for (const stream of ['key', 'value'] as const) {
      const errors = [q8_0, fp8PerHead, q4_1, q4_0].map((codec) => relativeError(codec, stream));
      assert.deepEqual(
        errors,
        errors.toSorted((a, b) => a - b),
      );
      assert.ok((errors[0] as number) > 1e-6 && (errors[3] as number) < 0.02, errors.join(' '));
      assert.ok(relativeError(kivi(4), stream) * 5 < relativeError(kivi(2), stream));
    }
  });

  it('q8_0 rounds to 127ths of a block’s largest magnitude', () => {
    const rows = new Float32Array(64);
    rows.set([-127, 1.4, 63.6], 0);
    rows.set([0.5, -0.3], 32);
    q8_0.apply(layerOf(rows, 1));
    assert.deepEqual([...rows.subarray(0, 3)], [-127, 1, 64]);
    const step = half(0.5 / 127);
    assert.deepEqual([...rows.subarray(32, 35)], [127 * step, -76 * step, 0].map(Math.fround));
  });

  it('q4_0 makes the value of largest magnitude code −8, so that the other side ends at 7 steps', () => {
    const rows = new Float32Array(32);
    rows.set([8, -8, 3.4, -0.6]);
    q4_0.apply(layerOf(rows, 1));
    assert.deepEqual([...rows.subarray(0, 4)], [8, -7, 3, -1]);
  });

  it('q4_1 spans minimum to maximum in 15 steps', () => {
    const rows = Float32Array.from({ length: 32 }, (_, i) => (i % 16) + 100 + (i === 5 ? 0.4 : 0));
    q4_1.apply(layerOf(rows, 1));
    assert.deepEqual(
      [...rows],
      Array.from({ length: 32 }, (_, i) => (i % 16) + 100),
    );
  });

  it('KIVI groups keys by channel over tokens, values by token over channels, and keeps the newest 128', () => {
    const tokens = 32 + 128;
    for (const stream of ['key', 'value'] as const) {
      // Constant along the group of its stream, wild across it: min/max coding must be lossless.
      const rows = Float32Array.from({ length: tokens * 32 }, (_, i) =>
        stream === 'key' ? (i % 32) ** 2 : Math.floor(i / 32) ** 2 / 8,
      );
      const exact = rows.slice();
      kivi(2).apply(layerOf(rows, tokens, stream));
      assert.deepEqual(rows, exact);
      const noisy = randomRows(tokens, 32);
      const before = noisy.slice();
      kivi(2).apply(layerOf(noisy, tokens, stream));
      assert.deepEqual(noisy.subarray(32 * 32), before.subarray(32 * 32));
      assert.notDeepEqual(noisy.subarray(0, 32 * 32), before.subarray(0, 32 * 32));
    }
  });

  it('fp8 scales every head by its own largest magnitude', () => {
    const rows = Float32Array.from([448, 1, 4.48, 0.01, -224, 2, -0.07, 0.02]); // 2 tokens of 2 heads of 2
    fp8PerHead.apply(layerOf(rows, 2, 'key', 2));
    assert.deepEqual([rows[0], rows[1], rows[4], rows[5]], [448, 1, -224, 2]);
    assert.equal(rows[2], Math.fround(4.48));
    assert.ok(Math.abs((rows[6] as number) + 0.07) < 0.07 / 16);
  });

  it('E4M3 rounding keeps its 126 positive values, and ties go to even codes', () => {
    const values: number[] = [];
    for (let code = 0; code < 127; code++) {
      const [exponent, mantissa] = [code >> 3, code & 7];
      values.push(exponent === 0 ? (mantissa / 8) * 2 ** -6 : (1 + mantissa / 8) * 2 ** (exponent - 7));
    }
    assert.equal(values.at(-1), 448);
    for (const [code, value] of values.entries()) {
      assert.equal(roundE4m3(value), value);
      assert.equal(roundE4m3(-value), -value);
      const next = values[code + 1];
      if (next !== undefined) assert.equal(roundE4m3((value + next) / 2), code % 2 === 0 ? value : next);
    }
    assert.equal(roundE4m3(1e6), 448);
  });

  it('leave zero blocks zero', () => {
    for (const codec of [q8_0, q4_0, q4_1, fp8PerHead, kivi(2)]) {
      const rows = new Float32Array(192 * 32);
      codec.apply(layerOf(rows, 192));
      assert.ok(
        rows.every((x) => x === 0),
        codec.label,
      );
    }
  });

  it('refuse rows that do not divide into blocks', () => {
    assert.throws(
      () => q4_0.apply(layerOf(new Float32Array(2 * 40), 2)),
      (error) => isKvtcError(error, 'KVTC_MODEL_UNSUPPORTED'),
    );
  });
});
