// Eigenvectors of a dense symmetric matrix of some thousand rows: tridiagonalisation and eigenvalues in f64 JS,
// tridiagonal eigenvectors by inverse iteration, and the back-transformation by blocks of reflectors on the backend.
// Takes (4/3)·n³ scalar operations instead of QL's 6·n³. Does not know where the matrix comes from.

import { seededRandom } from '../base/random.ts';
import type { Backend } from './backend.ts';
import { denseMatrix, dot } from './dense.ts';
import { symmetricEigen, tridiagonalValues, tridiagonalise } from './symmetric-eigen.ts';
import type { Tridiagonal } from './symmetric-eigen.ts';

/** Below this the plain solver is as fast. */
const SMALL = 384;
/** Reflectors applied by one pair of products. */
const REFLECTOR_BLOCK = 64;
/** Eigenvalues nearer than this share of the largest are orthogonalised against each other one by one: beyond it,
 * inverse iteration leaves them orthogonal to f64 epsilon / 1e-9 = 2e-7. */
const CLUSTER_GAP = 1e-9;

export interface LargeEigen {
  /** f64[n], falling. */
  readonly values: Float64Array;
  /** f32[n, n]; row i belongs to value i. Orthonormal to f32 rounding, a few 1e-6 inside clusters. */
  readonly vectors: Float32Array;
}

/** All eigenpairs of a symmetric f64[n, n], which is overwritten. */
export async function largeSymmetricEigen(backend: Backend, matrix: Float64Array, n: number): Promise<LargeEigen> {
  if (n <= SMALL) {
    const { values, vectors } = symmetricEigen(matrix, n);
    return { values, vectors: Float32Array.from(vectors) };
  }
  const form = tridiagonalise(matrix, n);
  const values = tridiagonalValues(form.diagonal, form.offDiagonal);
  const vectors = inverseIteration(form, values, n);
  for (let end = n - 2; end > 0; end -= REFLECTOR_BLOCK) {
    await applyReflectors(backend, vectors, form, Math.max(0, end - REFLECTOR_BLOCK), end, n);
  }
  return { values, vectors };
}

/** Eigenvectors of the tridiagonal matrix, as rows, in the order of `values`. */
function inverseIteration(form: Tridiagonal, values: Float64Array, n: number): Float32Array {
  const norm = Math.max(Math.abs(values[0]!), Math.abs(values[n - 1]!), Number.MIN_VALUE);
  const random = seededRandom(1);
  const vectors = new Float32Array(n * n);
  const solver = new ShiftedTridiagonal(form.diagonal, form.offDiagonal, n, norm);
  let cluster: Float64Array[] = [];
  for (let i = 0; i < n; i++) {
    if (i > 0 && values[i - 1]! - values[i]! > CLUSTER_GAP * norm) cluster = [];
    const x = Float64Array.from({ length: n }, () => random.uniform() - 0.5);
    solver.factor(values[i]!);
    for (let step = 0; step < 3; step++) {
      solver.solve(x);
      for (const other of cluster) {
        const part = dot(x, other);
        for (let j = 0; j < n; j++) x[j]! -= part * other[j]!;
      }
      const scale = 1 / Math.sqrt(dot(x, x));
      for (let j = 0; j < n; j++) x[j]! *= scale;
    }
    cluster.push(x);
    vectors.set(x, i * n);
  }
  return vectors;
}

/** LU of T − λ with row exchanges; U has two superdiagonals. */
class ShiftedTridiagonal {
  private readonly diagonal: Float64Array;
  private readonly off: Float64Array;
  private readonly n: number;
  private readonly tiny: number;
  private readonly u0: Float64Array;
  private readonly u1: Float64Array;
  private readonly u2: Float64Array;
  private readonly lower: Float64Array;
  private readonly swapped: Uint8Array;

  constructor(diagonal: Float64Array, off: Float64Array, n: number, norm: number) {
    this.diagonal = diagonal;
    this.off = off;
    this.n = n;
    this.tiny = Number.EPSILON * norm;
    this.u0 = new Float64Array(n);
    this.u1 = new Float64Array(n);
    this.u2 = new Float64Array(n);
    this.lower = new Float64Array(n);
    this.swapped = new Uint8Array(n);
  }

  factor(shift: number): void {
    const { diagonal, off, n, u0, u1, u2, lower, swapped, tiny } = this;
    let here = diagonal[0]! - shift;
    let next = off[0]!;
    for (let i = 0; i < n - 1; i++) {
      const below = off[i]!;
      const belowDiagonal = diagonal[i + 1]! - shift;
      const belowNext = i + 2 < n ? off[i + 1]! : 0;
      if (Math.abs(here) >= Math.abs(below)) {
        const pivot = Math.abs(here) < tiny ? tiny : here;
        const factor = below / pivot;
        swapped[i] = 0;
        u0[i] = pivot;
        u1[i] = next;
        u2[i] = 0;
        lower[i] = factor;
        here = belowDiagonal - factor * next;
        next = belowNext;
      } else {
        const factor = here / below;
        swapped[i] = 1;
        u0[i] = below;
        u1[i] = belowDiagonal;
        u2[i] = belowNext;
        lower[i] = factor;
        here = next - factor * belowDiagonal;
        next = -factor * belowNext;
      }
    }
    u0[n - 1] = Math.abs(here) < tiny ? tiny : here;
  }

  solve(x: Float64Array): void {
    const { n, u0, u1, u2, lower, swapped } = this;
    for (let i = 0; i < n - 1; i++) {
      if (swapped[i] === 1) {
        const held = x[i]!;
        x[i] = x[i + 1]!;
        x[i + 1] = held;
      }
      x[i + 1]! -= lower[i]! * x[i]!;
    }
    for (let i = n - 1; i >= 0; i--) {
      let value = x[i]!;
      if (i + 1 < n) value -= u1[i]! * x[i + 1]!;
      if (i + 2 < n) value -= u2[i]! * x[i + 2]!;
      x[i] = value / u0[i]!;
    }
  }
}

/**
 * Rows x ← H_start … H_{end−1} x, as x − (x·V)·Tᵀ·Vᵀ with the compact WY form of the block (Schreiber & Van Loan).
 * `vectors` f32[n, n] in place.
 */
async function applyReflectors(
  backend: Backend,
  vectors: Float32Array,
  form: Tridiagonal,
  start: number,
  end: number,
  n: number,
): Promise<void> {
  const count = end - start;
  const reflectors = new Float64Array(count * n); // Vᵀ; rows hold zeros up to their own first entry
  for (let i = 0; i < count; i++) {
    if (form.betas[start + i] === 0) continue;
    const from = (start + i) * n + start + i + 1;
    reflectors.set(form.reflectors.subarray(from, (start + i + 1) * n), i * n + start + i + 1);
  }
  const t = new Float64Array(count * count); // upper triangular
  for (let i = 0; i < count; i++) {
    const beta = form.betas[start + i]!;
    const overlap = new Float64Array(i);
    const own = reflectors.subarray(i * n, (i + 1) * n);
    for (let j = 0; j < i; j++) overlap[j] = dot(reflectors.subarray(j * n, (j + 1) * n), own);
    for (let j = 0; j < i; j++) t[j * count + i] = -beta * dot(t.subarray(j * count, j * count + i), overlap);
    t[i * count + i] = beta;
  }
  const folded = new Float32Array(n * count); // (Tᵀ·Vᵀ)ᵀ = V·T, [n, count]
  for (let j = 0; j < count; j++) {
    for (let i = 0; i <= j; i++) {
      const weight = t[i * count + j]!;
      if (weight === 0) continue;
      for (let c = start + 1; c < n; c++) folded[c * count + j]! += weight * reflectors[i * n + c]!;
    }
  }
  const straight = await backend.prepareMatrix(denseMatrix(Float32Array.from(reflectors), count, n), 'f32');
  const back = await backend.prepareMatrix(denseMatrix(folded, n, count), 'f32');
  try {
    const part = new Float32Array(n * count);
    const removed = new Float32Array(n * n);
    await straight.multiply(vectors, n, part);
    await back.multiply(part, n, removed);
    for (let i = 0; i < removed.length; i++) vectors[i]! -= removed[i]!;
  } finally {
    straight.close();
    back.close();
  }
}
