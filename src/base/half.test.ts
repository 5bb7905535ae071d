import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bf16ToF32, decodeBf16, decodeF16, encodeBf16, encodeF16, f16ToF32, f32ToBf16, f32ToF16 } from './half.ts';

const all = Uint16Array.from({ length: 65_536 }, (_, i) => i);

test('every f16 value survives the way to f32 and back, bit for bit unless NaN', () => {
  const values = new Float32Array(65_536);
  const back = new Uint16Array(65_536);
  decodeF16(all, values);
  encodeF16(values, back);
  let finite = 0;
  for (let half = 0; half < 65_536; half++) {
    if (Number.isNaN(values[half])) {
      assert.ok((half & 0x7c00) === 0x7c00 && (half & 0x3ff) !== 0);
      assert.equal(back[half]! & 0x7e00, 0x7e00);
      continue;
    }
    finite++;
    assert.equal(back[half], half);
    assert.equal(f32ToF16(f16ToF32(half)), half);
  }
  assert.equal(finite, 65_536 - 2 * 1023);
});

test('every bf16 value survives the way to f32 and back, bit for bit unless NaN', () => {
  const values = new Float32Array(65_536);
  const back = new Uint16Array(65_536);
  decodeBf16(all, values);
  encodeBf16(values, back);
  for (let half = 0; half < 65_536; half++) {
    if (Number.isNaN(values[half])) assert.ok(Number.isNaN(bf16ToF32(back[half]!)));
    else {
      assert.equal(back[half], half);
      assert.equal(f32ToBf16(bf16ToF32(half)), half);
    }
  }
});

/** The f32 `steps` places above a positive value, by its bits. */
function neighbour(value: number, steps: number): number {
  const words = new Uint32Array(Float32Array.of(value).buffer);
  words[0]! += steps;
  return new Float32Array(words.buffer)[0]!;
}

for (const [name, toBits, toValue, largest] of [
  ['f16', f32ToF16, f16ToF32, 0x7bff],
  ['bf16', f32ToBf16, bf16ToF32, 0x7f7f],
] as const) {
  test(`${name} rounds every midpoint to even and its neighbours to the nearer side`, () => {
    for (let half = 0; half < largest; half++) {
      const low = toValue(half);
      const middle = low + (toValue(half + 1) - low) / 2;
      const even = half & 1 ? half + 1 : half;
      assert.equal(toBits(middle), even);
      assert.equal(toBits(-middle), even | 0x8000);
      assert.equal(toBits(neighbour(middle, 1)), half + 1);
      assert.equal(toBits(neighbour(middle, -1)), half);
    }
  });
}

test('values beyond the range become infinities and NaN stays NaN', () => {
  assert.equal(f32ToF16(65_519.99), 0x7bff);
  assert.equal(f32ToF16(65_520), 0x7c00);
  assert.equal(f32ToF16(1e30), 0x7c00);
  assert.equal(f32ToF16(-Infinity), 0xfc00);
  assert.equal(f32ToF16(-0), 0x8000);
  assert.equal(f32ToF16(2 ** -25), 0);
  assert.equal(f32ToF16(2 ** -25 * 1.0001), 1);
  assert.ok(Number.isNaN(f16ToF32(f32ToF16(NaN))));
  assert.equal(f32ToBf16(3.4e38), 0x7f80);
  assert.ok(Number.isNaN(bf16ToF32(f32ToBf16(NaN))));
});
