// Orthonormal rows by block Gram-Schmidt: slices are freed of all earlier slices and then orthonormalised among
// themselves by Cholesky-QR with the factor in f64; all large products go to the backend.
// Does not know what the rows span.

import { seededRandom } from '../base/random.ts';
import type { Backend, PreparedMatrix } from './backend.ts';
import { denseMatrix, dot, transpose } from './dense.ts';

/** Rows orthonormalised at once: large enough for fast products, small enough for an f64 Cholesky in JS. */
const SLICE_ROWS = 256;
/** A slice's Gram matrix this near to the identity needs no further Cholesky-QR pass. */
const GRAM_TOLERANCE = 1e-5;
const MAX_PASSES = 12;

export interface OrthonormalOptions {
  /** Times each slice is freed of the earlier ones: 1 keeps a basis well conditioned, 2 makes it orthonormal to f32. */
  readonly sweeps: 1 | 2;
  /** Directions that vanish are replaced by random ones from this seed. */
  readonly seed: number;
}

/**
 * Makes the rows of f32[rows, columns] (rows ≤ columns) orthonormal in place and in order: the span of the first i rows
 * stays what it was, up to f32 rounding, where these are independent. Deterministic.
 */
export async function orthonormaliseRows(
  backend: Backend,
  values: Float32Array,
  rows: number,
  columns: number,
  options: OrthonormalOptions,
): Promise<void> {
  const done: { straight: PreparedMatrix; transposed: PreparedMatrix }[] = [];
  const random = seededRandom(options.seed);
  try {
    for (let start = 0; start < rows; start += SLICE_ROWS) {
      const count = Math.min(SLICE_ROWS, rows - start);
      const slice = values.subarray(start * columns, (start + count) * columns);
      const removed = new Float32Array(slice.length);
      for (let sweep = 0; sweep < options.sweeps; sweep++) {
        normaliseRows(slice, count, columns, () => random.normal());
        for (const { straight, transposed } of done) {
          const part = new Float32Array(count * straight.rows);
          await straight.multiply(slice, count, part);
          await transposed.multiply(part, count, removed);
          for (let i = 0; i < slice.length; i++) slice[i]! -= removed[i]!;
        }
        await choleskyQr(backend, slice, count, columns, () => random.normal());
      }
      if (start + count < rows) {
        done.push({
          straight: await backend.prepareMatrix(denseMatrix(slice, count, columns), 'f32'),
          transposed: await backend.prepareMatrix(denseMatrix(transpose(slice, count, columns), columns, count), 'f32'),
        });
      }
    }
  } finally {
    for (const { straight, transposed } of done) {
      straight.close();
      transposed.close();
    }
  }
}

/** Repeats S ← L⁻¹·S, L·Lᵀ = S·Sᵀ + shift, until S·Sᵀ is the identity; the shift lets any input through (shifted
 * Cholesky-QR: each pass cuts the condition number by the shift's root). */
async function choleskyQr(
  backend: Backend,
  slice: Float32Array,
  rows: number,
  columns: number,
  draw: () => number,
): Promise<void> {
  const gram = new Float32Array(rows * rows);
  for (let pass = 0; pass < MAX_PASSES; pass++) {
    normaliseRows(slice, rows, columns, draw);
    const straight = await backend.prepareMatrix(denseMatrix(slice, rows, columns), 'f32');
    try {
      await straight.multiply(slice, rows, gram);
    } finally {
      straight.close();
    }
    if (distanceFromIdentity(gram, rows) < GRAM_TOLERANCE) return;
    const inverse = inverseCholesky(gram, rows);
    const turned = await backend.prepareMatrix(denseMatrix(transpose(slice, rows, columns), columns, rows), 'f32');
    try {
      await turned.multiply(inverse, rows, slice);
    } finally {
      turned.close();
    }
  }
}

/** Unit rows; a row that is zero or not finite is drawn anew. */
function normaliseRows(slice: Float32Array, rows: number, columns: number, draw: () => number): void {
  for (let r = 0; r < rows; r++) {
    const row = slice.subarray(r * columns, (r + 1) * columns);
    let norm = Math.sqrt(dot(row, row));
    if (!(norm > 1e-30 && norm < 1e30)) {
      for (let c = 0; c < columns; c++) row[c] = draw();
      norm = Math.sqrt(dot(row, row));
    }
    const scale = 1 / norm;
    for (let c = 0; c < columns; c++) row[c]! *= scale;
  }
}

function distanceFromIdentity(gram: Float32Array, n: number): number {
  let worst = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) worst = Math.max(worst, Math.abs(gram[i * n + j]!));
  }
  return worst;
}

/** L⁻¹ as f32, of the Cholesky factor of gram + shift, computed in f64. Pivots are held above the rounding of f32. */
function inverseCholesky(gram: Float32Array, n: number): Float32Array {
  const floor = 1e-6 * Math.sqrt(n);
  const factor = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const known = dot(factor.subarray(i * n, i * n + j), factor.subarray(j * n, j * n + j));
      const left = gram[i * n + j]! - known;
      factor[i * n + j] = i === j ? Math.sqrt(Math.max(left, floor)) : left / factor[j * n + j]!;
    }
  }
  // Row i of L⁻¹ = (e_i − Σ_{j<i} L_ij · row j) / L_ii
  const inverse = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    const row = inverse.subarray(i * n, i * n + i + 1);
    for (let j = 0; j < i; j++) {
      const weight = factor[i * n + j]!;
      for (let c = 0; c <= j; c++) row[c]! -= weight * inverse[j * n + c]!;
    }
    row[i] = 1;
    const scale = 1 / factor[i * n + i]!;
    for (let c = 0; c <= i; c++) row[c]! *= scale;
  }
  return Float32Array.from(inverse);
}
