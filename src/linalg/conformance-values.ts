// Values of the conformance suite: poisoned outputs, rows of every element type, and comparison by declared tolerances.
// Not part of the library; imported by tests alone.

import assert from 'node:assert/strict';
import { decodeBf16, decodeF16, encodeBf16, encodeF16 } from '../base/half.ts';
import type { RowLayout } from './backend.ts';

/** f32[length] of NaN. */
export function poisoned(length: number): Float32Array {
  return new Float32Array(length).fill(NaN);
}

/** Values → bytes of an element type. */
export function encodeRows(element: RowLayout['element'], values: Float32Array): Uint8Array {
  if (element === 'f32') return new Uint8Array(values.slice().buffer);
  const halves = new Uint16Array(values.length);
  (element === 'f16' ? encodeF16 : encodeBf16)(values, halves);
  return new Uint8Array(halves.buffer);
}

/** Bytes of an element type → values. */
export function decodeRows(element: RowLayout['element'], rows: Uint8Array): Float32Array {
  const { buffer } = rows.slice();
  if (element === 'f32') return new Float32Array(buffer);
  const values = new Float32Array(rows.length / 2);
  (element === 'f16' ? decodeF16 : decodeBf16)(new Uint16Array(buffer), values);
  return values;
}

/** Fails unless every value is finite, the error energy is within `nmse` and no error beyond `peak` times the rms. */
export function compare(
  name: string,
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: { readonly nmse: number; readonly peak: number },
): void {
  assert.equal(got.length, expected.length);
  let energy = 0;
  let errors = 0;
  let largest = 0;
  for (let i = 0; i < got.length; i++) {
    const error = got[i]! - expected[i]!;
    assert.ok(Number.isFinite(error), `${name}: value ${i} is ${got[i]}, expected ${expected[i]}`);
    energy += expected[i]! ** 2;
    errors += error ** 2;
    largest = Math.max(largest, Math.abs(error));
  }
  const nmse = errors === 0 ? 0 : errors / energy;
  const peak = largest === 0 ? 0 : largest / Math.sqrt(energy / got.length);
  assert.ok(nmse <= tolerance.nmse, `${name}: error energy ${nmse}, allowed ${tolerance.nmse}`);
  assert.ok(peak <= tolerance.peak, `${name}: largest error ${peak} of the rms, allowed ${tolerance.peak}`);
}
