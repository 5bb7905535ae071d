// Whole matrices in memory, row-major: as a MatrixSource, transposed, normalised. Does not know backends.

import type { MatrixSource } from './backend.ts';

/** A source over f32[rows, columns]; not copied. */
export function denseMatrix(values: Float32Array, rows: number, columns: number): MatrixSource {
  return {
    rows,
    columns,
    read: (startRow, endRow, out) => {
      out.set(values.subarray(startRow * columns, endRow * columns));
      return Promise.resolve();
    },
  };
}

/** f32[rows, columns] → f32[columns, rows], in tiles that stay in the first cache. */
export function transpose(
  values: Float32Array,
  rows: number,
  columns: number,
  out = new Float32Array(rows * columns),
): Float32Array {
  const tile = 32;
  for (let r0 = 0; r0 < rows; r0 += tile) {
    const r1 = Math.min(rows, r0 + tile);
    for (let c0 = 0; c0 < columns; c0 += tile) {
      const c1 = Math.min(columns, c0 + tile);
      for (let r = r0; r < r1; r++) {
        for (let c = c0; c < c1; c++) out[c * rows + r] = values[r * columns + c]!;
      }
    }
  }
  return out;
}

/** Σ aᵢ·bᵢ in f64. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum0 = 0;
  let sum1 = 0;
  let i = 0;
  for (; i + 1 < a.length; i += 2) {
    sum0 += a[i]! * b[i]!;
    sum1 += a[i + 1]! * b[i + 1]!;
  }
  if (i < a.length) sum0 += a[i]! * b[i]!;
  return sum0 + sum1;
}

/** Values of the packed lower triangle. */
export function triangleSize(width: number): number {
  return (width * (width + 1)) / 2;
}
