// Eigenvalues and eigenvectors of small dense symmetric matrices in f64: Householder tridiagonalisation, then implicit
// QL (the classical pair; Golub & Van Loan, Matrix Computations, 8.3). The tridiagonal parts are exported for the large
// solver, which does its products elsewhere. Does not know where matrices come from.

import { invariant } from '../base/errors.ts';

/** Sweeps per eigenvalue after which QL is taken to have failed; two or three are usual. */
const MAX_SWEEPS = 60;

export interface Eigen {
  /** f64[n], falling. */
  readonly values: Float64Array;
  /** f64[n, n]; row i is the unit eigenvector of value i. */
  readonly vectors: Float64Array;
}

/** A = Hᵀ T H with H = the product of the reflectors, and T tridiagonal. */
export interface Tridiagonal {
  readonly diagonal: Float64Array; // [n]
  /** offDiagonal[i] couples i and i + 1; the last entry is 0. */
  readonly offDiagonal: Float64Array; // [n]
  /**
   * f64[n, n]: row k < n − 2 holds the reflector I − betas[k]·v·vᵀ, nonzero from column k + 1 on. Reflector 0 was
   * applied to A first.
   */
  readonly reflectors: Float64Array;
  readonly betas: Float64Array; // [n]
}

/** All eigenpairs of a symmetric matrix f64[n, n]; `matrix` is left alone. O(n³), about 0.5 s at n = 512. */
export function symmetricEigen(matrix: Float64Array, n: number): Eigen {
  invariant(matrix.length === n * n, `matrix has ${matrix.length} values, expected ${n}²`);
  const { diagonal, offDiagonal, reflectors, betas } = tridiagonalise(Float64Array.from(matrix), n);
  const vectors = new Float64Array(n * n);
  for (let i = 0; i < n; i++) vectors[i * n + i] = 1;
  // Row i of `vectors` starts as e_i and becomes the i-th eigenvector of T, then of A.
  solveTridiagonal(diagonal, offDiagonal, n, vectors);
  for (let i = 0; i < n; i++) {
    const row = vectors.subarray(i * n, (i + 1) * n);
    for (let k = n - 3; k >= 0; k--) reflect(row, reflectors.subarray(k * n, (k + 1) * n), betas[k]!, k + 1, n);
  }
  return sortFalling(diagonal, vectors, n);
}

/** Eigenvalues of a tridiagonal matrix, falling. O(n²). Inputs are left alone. */
export function tridiagonalValues(diagonal: Float64Array, offDiagonal: Float64Array): Float64Array {
  const values = Float64Array.from(diagonal);
  solveTridiagonal(values, Float64Array.from(offDiagonal), values.length, null);
  return values.sort((a, b) => b - a);
}

/** Reduces a symmetric f64[n, n], which is overwritten (and returned as the reflectors). (4/3)·n³ operations. */
export function tridiagonalise(a: Float64Array, n: number): Tridiagonal {
  const diagonal = new Float64Array(n);
  const offDiagonal = new Float64Array(n);
  const betas = new Float64Array(n);
  const v = new Float64Array(n);
  const w = new Float64Array(n);
  for (let k = 0; k < n - 2; k++) {
    const row = a.subarray(k * n, (k + 1) * n);
    diagonal[k] = row[k]!;
    let scale = 0;
    for (let j = k + 1; j < n; j++) scale = Math.max(scale, Math.abs(row[j]!));
    if (scale === 0) continue; // already tridiagonal here: beta stays 0
    let norm = 0;
    for (let j = k + 1; j < n; j++) {
      v[j] = row[j]! / scale;
      norm += v[j]! * v[j]!;
    }
    norm = Math.sqrt(norm);
    const alpha = v[k + 1]! > 0 ? -norm : norm;
    offDiagonal[k] = alpha * scale;
    v[k + 1]! -= alpha;
    const beta = -1 / (alpha * v[k + 1]!);
    betas[k] = beta;
    symmetricTimes(a, n, k + 1, v, w);
    let vw = 0;
    for (let j = k + 1; j < n; j++) vw += v[j]! * w[j]!;
    const shift = (beta * beta * vw) / 2;
    for (let j = k + 1; j < n; j++) w[j] = beta * w[j]! - shift * v[j]!;
    rankTwoUpdate(a, n, k + 1, v, w);
    for (let j = k + 1; j < n; j++) row[j] = v[j]!;
  }
  for (let k = Math.max(0, n - 2); k < n; k++) diagonal[k] = a[k * n + k]!;
  if (n > 1) offDiagonal[n - 2] = a[(n - 2) * n + n - 1]!;
  return { diagonal, offDiagonal, reflectors: a, betas };
}

/** w = A·v over [from, n), reading the upper triangle alone. */
function symmetricTimes(a: Float64Array, n: number, from: number, v: Float64Array, w: Float64Array): void {
  w.fill(0, from);
  for (let i = from; i < n; i++) {
    const row = i * n;
    const vi = v[i]!;
    let sum0 = a[row + i]! * vi;
    let sum1 = 0;
    let j = i + 1;
    for (; j + 1 < n; j += 2) {
      const a0 = a[row + j]!;
      const a1 = a[row + j + 1]!;
      sum0 += a0 * v[j]!;
      sum1 += a1 * v[j + 1]!;
      w[j]! += a0 * vi;
      w[j + 1]! += a1 * vi;
    }
    if (j < n) {
      sum0 += a[row + j]! * v[j]!;
      w[j]! += a[row + j]! * vi;
    }
    w[i]! += sum0 + sum1;
  }
}

/** A −= v·wᵀ + w·vᵀ over [from, n), upper triangle alone. */
function rankTwoUpdate(a: Float64Array, n: number, from: number, v: Float64Array, w: Float64Array): void {
  for (let i = from; i < n; i++) {
    const row = i * n;
    const vi = v[i]!;
    const wi = w[i]!;
    for (let j = i; j < n; j++) a[row + j]! -= vi * w[j]! + wi * v[j]!;
  }
}

function reflect(x: Float64Array, v: Float64Array, beta: number, from: number, n: number): void {
  if (beta === 0) return;
  let dot = 0;
  for (let j = from; j < n; j++) dot += v[j]! * x[j]!;
  dot *= beta;
  for (let j = from; j < n; j++) x[j]! -= dot * v[j]!;
}

/** Implicit QL with Wilkinson's shift. Leaves eigenvalues in `d`; rotates pairs of rows of `vectors` along, if given. */
function solveTridiagonal(d: Float64Array, e: Float64Array, n: number, vectors: Float64Array | null): void {
  for (let low = 0; low < n; low++) {
    for (let sweep = 0; ; sweep++) {
      let high = low;
      while (high < n - 1) {
        const size = Math.abs(d[high]!) + Math.abs(d[high + 1]!);
        if (Math.abs(e[high]!) <= Number.EPSILON * size || e[high] === 0) break;
        high++;
      }
      if (high === low) break;
      invariant(sweep < MAX_SWEEPS, 'QL did not converge; the matrix holds NaN or Inf');
      let g = (d[low + 1]! - d[low]!) / (2 * e[low]!);
      let r = Math.hypot(g, 1);
      g = d[high]! - d[low]! + e[low]! / (g + (g >= 0 ? r : -r));
      let s = 1;
      let c = 1;
      let p = 0;
      let i = high - 1;
      for (; i >= low; i--) {
        const f = s * e[i]!;
        const b = c * e[i]!;
        r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1]! -= p;
          e[high] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1]! - p;
        const t = (d[i]! - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        if (vectors !== null) rotateRows(vectors, n, i, c, s);
      }
      if (r === 0 && i >= low) continue;
      d[low]! -= p;
      e[low] = g;
      e[high] = 0;
    }
  }
}

function rotateRows(vectors: Float64Array, n: number, i: number, c: number, s: number): void {
  for (let x = i * n, y = x + n, end = y; x < end; x++, y++) {
    const a = vectors[x]!;
    const b = vectors[y]!;
    vectors[y] = s * a + c * b;
    vectors[x] = c * a - s * b;
  }
}

function sortFalling(values: Float64Array, vectors: Float64Array, n: number): Eigen {
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => values[j]! - values[i]!);
  const sorted = new Float64Array(n * n);
  order.forEach((from, to) => sorted.set(vectors.subarray(from * n, (from + 1) * n), to * n));
  return { values: Float64Array.from(order, (i) => values[i]!), vectors: sorted };
}
