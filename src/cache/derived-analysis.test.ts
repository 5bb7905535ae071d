import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import { denseMatrix, dot, triangleSize } from '../linalg/dense.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { openReferenceBackend } from '../linalg/reference.ts';
import type { HeadMetric } from '../profile/profile.ts';
import { withDerivedAnalysis } from './derived-analysis.ts';

const [HEADS, DIM, RANK] = [6, 8, 32] as const;
const WIDTH = HEADS * DIM;
const ggml = openGgmlBackend();
after(() => ggml.close());

/** Metrics B·Bᵀ + 1 of sizes a hundredfold apart. */
function unevenMetric(): { metric: HeadMetric; cost: (a: Float32Array, b: Float32Array) => number } {
  const random = seededRandom(3);
  const packed: number[] = [];
  const full = new Float64Array(HEADS * DIM * DIM);
  for (let h = 0; h < HEADS; h++) {
    const b = Array.from({ length: DIM }, () => Float64Array.from({ length: DIM }, () => random.normal()));
    for (let i = 0; i < DIM; i++) {
      for (let j = 0; j < DIM; j++) {
        const value = 10 ** (h % 3) * (dot(b[i]!, b[j]!) + (i === j ? 1 : 0));
        full[(h * DIM + i) * DIM + j] = value;
        if (j <= i) packed.push(value);
      }
    }
  }
  const cost = (a: Float32Array, b: Float32Array): number => {
    let sum = 0;
    for (let h = 0; h < HEADS; h++) {
      for (let i = 0; i < DIM; i++) {
        const row = full.subarray((h * DIM + i) * DIM, (h * DIM + i + 1) * DIM);
        sum += a[h * DIM + i]! * dot(row, b.subarray(h * DIM, (h + 1) * DIM));
      }
    }
    return sum;
  };
  return { metric: { heads: HEADS, headDim: DIM, packed: Float32Array.from(packed) }, cost };
}

/** Rows that are orthonormal under the metric: what a fit gives. */
function dualRows(cost: (a: Float32Array, b: Float32Array) => number): Float32Array[] {
  const random = seededRandom(4);
  const rows: Float32Array[] = [];
  while (rows.length < RANK) {
    const row = Float32Array.from({ length: WIDTH }, () => random.normal());
    for (let sweep = 0; sweep < 2; sweep++) {
      for (const other of rows) {
        const share = cost(row, other);
        for (let i = 0; i < WIDTH; i++) row[i]! -= share * other[i]!;
      }
    }
    const size = Math.sqrt(cost(row, row));
    rows.push(row.map((value) => value / size));
  }
  return rows;
}

async function allRows(source: MatrixSource): Promise<Float32Array[]> {
  const values = new Float32Array(source.rows * source.columns);
  // In two uneven reads: rows past the first read know their own number.
  await source.read(0, 5, values);
  await source.read(5, source.rows, values.subarray(5 * source.columns));
  return Array.from({ length: source.rows }, (_, k) => values.subarray(k * source.columns, (k + 1) * source.columns));
}

const { metric, cost } = unevenMetric();
const exact = dualRows(cost);

for (const backend of [openReferenceBackend(), ggml]) {
  test(`${backend.id}: the analysis of exact rows takes every coefficient out of its own row alone`, async () => {
    assert.equal(metric.packed.length, HEADS * triangleSize(DIM));
    const synthesis = denseMatrix(Float32Array.from(exact.flatMap((row) => [...row])), RANK, WIDTH);
    const analysis = await withDerivedAnalysis(synthesis, metric, backend, allRows);
    for (const [k, row] of analysis.entries()) {
      for (const [m, other] of exact.entries()) {
        assert.ok(Math.abs(dot(row, other) - (k === m ? 1 : 0)) < 1e-4, `${k}, ${m}: ${dot(row, other)}`);
      }
    }
  });

  test(`${backend.id}: rounded rows leak ten times less than through the metric alone`, async () => {
    const random = seededRandom(5);
    const rounded = exact.map((row) => row.map((value) => value * (1 + 0.01 * random.normal())));
    const synthesis = denseMatrix(Float32Array.from(rounded.flatMap((row) => [...row])), RANK, WIDTH);
    const analysis = await withDerivedAnalysis(synthesis, metric, backend, allRows);
    let [derived, plain] = [0, 0];
    for (const [k, row] of analysis.entries()) {
      for (const [m, other] of rounded.entries()) {
        const wanted = k === m ? 1 : 0;
        derived += (dot(row, other) - wanted) ** 2;
        plain += (cost(rounded[k]!, other) - wanted) ** 2;
      }
    }
    assert.ok(plain > 1e-3 && derived < plain / 100, `${derived} of ${plain}`);
  });
}
