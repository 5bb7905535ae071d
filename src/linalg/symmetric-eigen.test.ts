import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { symmetricEigen, tridiagonalValues, tridiagonalise } from './symmetric-eigen.ts';

function check(matrix: Float64Array, n: number): Float64Array {
  const { values, vectors } = symmetricEigen(matrix, n);
  const size = Math.max(1e-300, ...matrix.map(Math.abs)) * n;
  for (let i = 0; i < n; i++) {
    if (i > 0) assert.ok(values[i]! <= values[i - 1]!);
    for (let j = 0; j < n; j++) {
      let image = 0;
      let dot = 0;
      for (let k = 0; k < n; k++) {
        image += matrix[j * n + k]! * vectors[i * n + k]!;
        dot += vectors[i * n + k]! * vectors[j * n + k]!;
      }
      assert.ok(Math.abs(image - values[i]! * vectors[i * n + j]!) <= 1e-13 * size, `A·v = λ·v at ${i}, ${j}`);
      assert.ok(Math.abs(dot - (i === j ? 1 : 0)) <= 1e-12, `orthonormal at ${i}, ${j}`);
    }
  }
  return values;
}

function randomSymmetric(n: number, seed: number): Float64Array {
  const random = seededRandom(seed);
  const matrix = new Float64Array(n * n);
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) matrix[i * n + j] = matrix[j * n + i] = random.normal();
  return matrix;
}

test('eigenpairs of random symmetric matrices satisfy A·v = λ·v with orthonormal vectors', () => {
  for (const n of [1, 2, 3, 4, 17, 96]) check(randomSymmetric(n, n), n);
});

test('degenerate, diagonal, zero and rank-one matrices are solved', () => {
  const identity = new Float64Array(25);
  for (let i = 0; i < 5; i++) identity[i * 6] = 3;
  assert.deepEqual([...check(identity, 5)], [3, 3, 3, 3, 3]);
  assert.deepEqual([...check(new Float64Array(16), 4)], [0, 0, 0, 0]);
  const ones = new Float64Array(36).fill(1);
  const values = check(ones, 6);
  assert.ok(Math.abs(values[0]! - 6) < 1e-12 && Math.abs(values[1]!) < 1e-12);
});

test('values of very different size keep their relative precision in a graded matrix', () => {
  const n = 24;
  const diagonal = Float64Array.from({ length: n }, (_, i) => 10 ** -i);
  const { values } = symmetricEigen(
    Float64Array.from({ length: n * n }, (_, k) => (k % (n + 1) === 0 ? diagonal[k / (n + 1)]! : 0)),
    n,
  );
  values.forEach((value, i) => assert.ok(Math.abs(value / diagonal[i]! - 1) < 1e-12));
});

test('the tridiagonal form has the values of the matrix', () => {
  const n = 40;
  const matrix = randomSymmetric(n, 7);
  const { values } = symmetricEigen(matrix, n);
  const { diagonal, offDiagonal } = tridiagonalise(Float64Array.from(matrix), n);
  const found = tridiagonalValues(diagonal, offDiagonal);
  found.forEach((value, i) => assert.ok(Math.abs(value - values[i]!) < 1e-11));
});
