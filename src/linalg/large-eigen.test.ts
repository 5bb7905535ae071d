import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { denseMatrix } from './dense.ts';
import { openGgmlBackend } from './ggml/backend.ts';
import { largeSymmetricEigen } from './large-eigen.ts';
import { orthonormaliseRows } from './orthonormal.ts';

const backend = openGgmlBackend();
after(() => backend.close());

/** Largest |V·Vᵀ − I| and largest |V·A·Vᵀ − Λ| relative to λ₁. */
async function residues(matrix: Float64Array, n: number): Promise<{ orthonormality: number; offDiagonal: number }> {
  const { values, vectors } = await largeSymmetricEigen(backend, Float64Array.from(matrix), n);
  const images = new Float32Array(n * n);
  const product = new Float32Array(n * n);
  const gram = new Float32Array(n * n);
  const a = await backend.prepareMatrix(denseMatrix(Float32Array.from(matrix), n, n), 'f32');
  const v = await backend.prepareMatrix(denseMatrix(vectors, n, n), 'f32');
  await a.multiply(vectors, n, images);
  await v.multiply(images, n, product);
  await v.multiply(vectors, n, gram);
  a.close();
  v.close();
  let orthonormality = 0;
  let offDiagonal = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      orthonormality = Math.max(orthonormality, Math.abs(gram[i * n + j]! - (i === j ? 1 : 0)));
      offDiagonal = Math.max(offDiagonal, Math.abs(product[i * n + j]! - (i === j ? values[i]! : 0)));
    }
  }
  return { orthonormality, offDiagonal: offDiagonal / Math.max(values[0]!, 1e-30) };
}

test('a dense power-law spectrum of 500 rows is diagonalised to f32 rounding', async () => {
  const n = 500;
  const random = seededRandom(3);
  const rotation = Float32Array.from({ length: n * n }, () => random.normal());
  await orthonormaliseRows(backend, rotation, n, n, { sweeps: 2, seed: 1 });
  const matrix = new Float64Array(n * n);
  for (let k = 0; k < n; k++) {
    const variance = (k + 4) ** -1.3;
    for (let i = 0; i < n; i++) {
      const weight = variance * rotation[k * n + i]!;
      for (let j = 0; j < n; j++) matrix[i * n + j]! += weight * rotation[k * n + j]!;
    }
  }
  const { orthonormality, offDiagonal } = await residues(matrix, n);
  assert.ok(orthonormality < 1e-5, `orthonormal to ${orthonormality}`);
  assert.ok(offDiagonal < 1e-5, `diagonal to ${offDiagonal}`);
});

test('clusters, blocks that do not touch and a null space of hundreds are diagonalised', async () => {
  const n = 450;
  const matrix = new Float64Array(n * n);
  // Values 2 (60 times, in 2 × 2 blocks with 0), 1 on a run of the diagonal, 0 elsewhere.
  for (let i = 0; i < 120; i += 2) {
    matrix[i * n + i] = matrix[(i + 1) * n + i + 1] = matrix[i * n + i + 1] = matrix[(i + 1) * n + i] = 1;
  }
  for (let i = 200; i < 230; i++) matrix[i * n + i] = 1;
  const { orthonormality, offDiagonal } = await residues(matrix, n);
  assert.ok(orthonormality < 1e-5, `orthonormal to ${orthonormality}`);
  assert.ok(offDiagonal < 1e-5, `diagonal to ${offDiagonal}`);
});

test('rows that are dependent, zero or wildly scaled are made orthonormal and keep the span of the first', async () => {
  const columns = 700;
  const rows = 600;
  const random = seededRandom(5);
  const values = Float32Array.from({ length: rows * columns }, (_, k) => random.normal() * 10 ** -((k / columns) % 7));
  values.copyWithin(columns, 0, columns); // row 1 = row 0
  values.fill(0, 300 * columns, 302 * columns);
  const first = values.slice(0, columns);
  await orthonormaliseRows(backend, values, rows, columns, { sweeps: 2, seed: 9 });
  const gram = new Float32Array(rows * rows);
  const matrix = await backend.prepareMatrix(denseMatrix(values, rows, columns), 'f32');
  await matrix.multiply(values, rows, gram);
  matrix.close();
  let worst = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < rows; j++) worst = Math.max(worst, Math.abs(gram[i * rows + j]! - (i === j ? 1 : 0)));
  }
  assert.ok(worst < 1e-5, `orthonormal to ${worst}`);
  const norm = Math.hypot(...first);
  let along = 0;
  for (let c = 0; c < columns; c++) along += (first[c]! / norm) * values[c]!;
  assert.ok(Math.abs(along - 1) < 1e-5);
});
