import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { f16ToF32, f32ToF16 } from '../../base/half.ts';
import {
  E4M3_VALUES,
  SMALLEST_DIVISOR,
  encodeE4m3,
  fp8Exponent,
  integerCode,
  saturatingF16,
  stepHalf,
} from './quantise.ts';

test('E4M3 bytes have the values of the OCP table', () => {
  for (const [byte, value] of [
    [0x00, 0],
    [0x01, 2 ** -9],
    [0x07, 7 * 2 ** -9],
    [0x08, 2 ** -6],
    [0x38, 1],
    [0x3f, 1.875],
    [0x7e, 448],
    [0xbc, -1.5],
    [0xfe, -448],
  ] as const) {
    assert.equal(E4M3_VALUES[byte], value);
  }
  assert.ok(Number.isNaN(E4M3_VALUES[0x7f]) && Number.isNaN(E4M3_VALUES[0xff]));
});

test('every E4M3 value encodes to its own byte, and midpoints go to the even one', () => {
  for (let byte = 0; byte < 0x7f; byte++) {
    const value = E4M3_VALUES[byte] as number;
    assert.equal(encodeE4m3(value), byte);
    assert.equal(encodeE4m3(-value), byte === 0 ? 0 : byte | 0x80);
    if (byte === 0x7e) break;
    const next = E4M3_VALUES[byte + 1] as number;
    const middle = (value + next) / 2;
    assert.equal(encodeE4m3(middle), byte % 2 === 0 ? byte : byte + 1);
    assert.equal(encodeE4m3(Math.fround(middle * (1 - 2 ** -23))), byte);
    assert.equal(encodeE4m3(Math.fround(middle * (1 + 2 ** -22))), byte + 1);
  }
});

test('E4M3 saturates instead of making Inf or NaN, and small values of either sign become +0', () => {
  for (const large of [448.1, 464, 480, 1e30, 3.4e38]) {
    assert.equal(encodeE4m3(large), 0x7e);
    assert.equal(encodeE4m3(-large), 0xfe);
  }
  for (const small of [2 ** -10, 1e-6, 1e-40, 0]) {
    assert.equal(encodeE4m3(small), 0);
    assert.equal(encodeE4m3(-small), 0);
  }
});

test('E4M3 picks a nearest value', () => {
  fc.assert(
    fc.property(fc.float({ min: -448, max: 448, noNaN: true }), (value) => {
      const error = Math.abs((E4M3_VALUES[encodeE4m3(value)] as number) - value);
      for (const other of E4M3_VALUES) if (!Number.isNaN(other)) assert.ok(error <= Math.abs(other - value));
    }),
  );
});

test('a group minimum beyond f16 saturates at ±65504', () => {
  assert.equal(saturatingF16(65_504), 0x7bff);
  assert.equal(saturatingF16(1e9), 0x7bff);
  assert.equal(saturatingF16(-65_520), 0xfbff);
  assert.equal(saturatingF16(2 ** -24), 1);
  assert.equal(saturatingF16(2 ** -26), 0);
});

test('the step is (max − stored minimum) / levels in f16', () => {
  assert.equal(f16ToF32(stepHalf(14, f32ToF16(-1), 15)), 1);
  assert.equal(f16ToF32(stepHalf(4, f32ToF16(1), 3)), 1);
  // 0.1 is stored as 0.0999755859375, so even a constant group keeps a small step (here its 3 steps reach 0.1).
  assert.equal(f16ToF32(stepHalf(Math.fround(0.1), f32ToF16(0.1), 3)), f16ToF32(f32ToF16((0.1 - 0.0999755859375) / 3)));
  // 1.0007 rounds up to 1.0009765625 in f16: the step is negative and every code is 0.
  const step = f16ToF32(stepHalf(Math.fround(1.0007), f32ToF16(1.0007), 3));
  assert.ok(step < 0);
  assert.equal(integerCode(Math.fround(1.0007), f16ToF32(f32ToF16(1.0007)), SMALLEST_DIVISOR, 3), 0);
  assert.equal(stepHalf(3e38, f32ToF16(0), 3), 0x7bff, 'a step beyond f16 saturates');
  assert.equal(stepHalf(1e-8, 0, 15), 0, 'a step below half the least subnormal is 0');
});

test('codes round half to even and are clamped', () => {
  const codes = [-9, 0, 0.5, 1.5, 2.5, 3.4, 14.5, 15.5, 900].map((x) => integerCode(x, 0, 1, 15));
  assert.deepEqual(codes, [0, 0, 0, 2, 2, 3, 14, 15, 15]);
});

test('with step 0 values above the minimum take the largest code, which decodes to the minimum all the same', () => {
  assert.equal(integerCode(Math.fround(1e-8), 0, SMALLEST_DIVISOR, 15), 15);
  assert.equal(integerCode(0, 0, SMALLEST_DIVISOR, 15), 0);
});

test('the fp8 exponent keeps 1.25 times the largest value inside E4M3, and no more than an octave beyond', () => {
  fc.assert(
    fc.property(fc.float({ min: Math.fround(1e-15), max: Math.fround(1e30), noNaN: true }), (largest) => {
      const reach = 448 * 2 ** fp8Exponent(largest);
      assert.ok(reach >= largest * 1.25 * (1 - 1e-6) && reach < largest * 2.5 * (1 + 1e-6));
    }),
  );
  assert.equal(fp8Exponent(0), -75);
});
