import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import type { KvtcEvent } from '../base/events.ts';
import { seededRandom } from '../base/random.ts';
import { denseMatrix } from '../linalg/dense.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { openReferenceBackend } from '../linalg/reference.ts';
import { symmetricEigen } from '../linalg/symmetric-eigen.ts';
import { fitBasis, leadingEigenvectors } from './basis.ts';
import type { FittedBasis } from './basis.ts';
import { accumulateMoments, covarianceMatrix, createMoments, fitMomentsFrame } from './moments.ts';
import type { Moments } from './moments.ts';

const backend = openGgmlBackend();
after(() => backend.close());

/** Rows with variances (i + 4)^-1.3 mixed by random signs and Hadamard steps over the whole width (a power of two). */
function powerLawRows(rowCount: number, width: number, seed: number, moving = width): Float32Array {
  const random = seededRandom(seed);
  const signs = Float32Array.from({ length: width }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 31 ? 1 : -1));
  const rows = new Float32Array(rowCount * width);
  for (let r = 0; r < rowCount; r++) {
    const row = rows.subarray(r * width, (r + 1) * width);
    for (let i = 0; i < moving; i++) row[i] = random.normal() * (i + 4) ** -0.65;
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < moving; i++) row[i]! *= signs[(i * 7 + round) % width]!;
      for (let half = 1; half < moving; half *= 2) {
        for (let i = 0; i < moving; i++) {
          if ((i & half) !== 0) continue;
          const a = row[i]!;
          const b = row[i + half]!;
          row[i] = (a + b) * Math.SQRT1_2;
          row[i + half] = (a - b) * Math.SQRT1_2;
        }
      }
    }
    for (let i = 0; i < width; i++) row[i]! += i / width;
  }
  return rows;
}

async function momentsOf(rows: Float32Array, width: number): Promise<Moments> {
  const count = rows.length / width;
  const moments = createMoments(fitMomentsFrame(rows, count, width, 'test'));
  await accumulateMoments(moments, rows, count, { backend, precision: 'f32' });
  return moments;
}

async function exactValues(moments: Moments): Promise<Float64Array> {
  const { width } = moments.frame;
  const covariance = new Float32Array(width * width);
  await covarianceMatrix(moments).read(0, width, covariance);
  return symmetricEigen(Float64Array.from(covariance), width).values;
}

/** Worst |B·Bᵀ − I| and worst |B·C·Bᵀ|ᵢⱼ / √(λᵢ·λⱼ) off the diagonal, and the true variances of the basis. */
async function examine(
  moments: Moments,
  { basis, rank, variances }: FittedBasis,
): Promise<{ orthonormality: number; correlation: number; captured: number }> {
  const { width } = moments.frame;
  const covariance = await backend.prepareMatrix(covarianceMatrix(moments), 'f32');
  const images = new Float32Array(rank * width);
  await covariance.multiply(basis, rank, images);
  covariance.close();
  const matrix = await backend.prepareMatrix(denseMatrix(basis, rank, width), 'f32');
  const gram = new Float32Array(rank * rank);
  const projected = new Float32Array(rank * rank);
  await matrix.multiply(basis, rank, gram);
  await matrix.multiply(images, rank, projected);
  matrix.close();
  let orthonormality = 0;
  let correlation = 0;
  let captured = 0;
  for (let i = 0; i < rank; i++) {
    captured += projected[i * rank + i]!;
    for (let j = 0; j < rank; j++) {
      orthonormality = Math.max(orthonormality, Math.abs(gram[i * rank + j]! - (i === j ? 1 : 0)));
      const size = Math.sqrt(variances[i]! * variances[j]!);
      if (i !== j && size > 0) correlation = Math.max(correlation, Math.abs(projected[i * rank + j]!) / size);
    }
  }
  return { orthonormality, correlation, captured };
}

function sum(values: ArrayLike<number>, end = values.length): number {
  let total = 0;
  for (let i = 0; i < end; i++) total += values[i]!;
  return total;
}

for (const [how, wholeWidth] of [
  ['whole', 512],
  ['by iteration', 0],
] as const) {
  test(`solved ${how}, the basis is orthonormal, decorrelated, falling and captures what the exact one does`, async () => {
    const width = 512;
    const moments = await momentsOf(powerLawRows(2000, width, 1), width);
    const exact = await exactValues(moments);
    const rank = 128;
    const fitted = await fitBasis(moments, { backend, rank, seed: 3, wholeWidth });
    assert.equal(fitted.iterations > 0, wholeWidth === 0);
    assert.ok(fitted.converged);
    const { orthonormality, correlation, captured } = await examine(moments, fitted);
    assert.ok(orthonormality < 1e-5, `orthonormal to ${orthonormality}`);
    assert.ok(correlation < 1e-4, `decorrelated to ${correlation}`);
    fitted.variances.forEach((value, i) => assert.ok(i === 0 || value <= fitted.variances[i - 1]!));
    assert.ok(Math.abs(captured / sum(fitted.variances) - 1) < 1e-5, 'the stated variances are the true ones');
    const best = sum(exact, rank);
    const residual = sum(exact) - best;
    assert.ok(Math.abs(fitted.totalEnergy / sum(exact) - 1) < 1e-5);
    assert.ok(best - captured < 0.005 * residual, `misses ${(best - captured) / residual} of the residual`);
    // The leading half is exact, not only its sum.
    for (let i = 0; i < rank / 2; i++) assert.ok(Math.abs(fitted.variances[i]! / exact[i]! - 1) < 1e-3, `value ${i}`);
  });
}

test('a tighter tolerance takes more passes and leaves less', async () => {
  const moments = await momentsOf(powerLawRows(1500, 256, 2), 256);
  const rank = 32;
  const best = sum(await exactValues(moments), rank);
  const loose = await fitBasis(moments, { backend, rank, wholeWidth: 0, tolerance: 0.1 });
  const tight = await fitBasis(moments, { backend, rank, wholeWidth: 0, tolerance: 1e-6 });
  assert.ok(tight.iterations > loose.iterations);
  assert.ok(sum(tight.variances) >= sum(loose.variances));
  assert.ok(best - sum(tight.variances) < 1e-5 * best);
});

test('the same seed gives the same bytes, for any number of threads', async () => {
  const moments = await momentsOf(powerLawRows(800, 256, 4), 256);
  const single = openGgmlBackend({ threads: 1 });
  const options = { rank: 48, seed: 9, wholeWidth: 0 };
  const a = await fitBasis(moments, { backend, ...options });
  const b = await fitBasis(moments, { backend: single, ...options });
  single.close();
  assert.deepEqual(a, b);
  const other = await fitBasis(moments, { backend, ...options, seed: 10 });
  assert.notDeepEqual(other.basis, a.basis);
});

test('the reference backend fits the same basis', async () => {
  const moments = await momentsOf(powerLawRows(300, 64, 5), 64);
  const a = await fitBasis(moments, { backend, rank: 16, wholeWidth: 0, tolerance: 1e-5 });
  const b = await fitBasis(moments, { backend: openReferenceBackend(), rank: 16, wholeWidth: 0, tolerance: 1e-5 });
  a.variances.forEach((value, i) => assert.ok(Math.abs(value / b.variances[i]! - 1) < 1e-3));
});

test('rank up to the width and every small width work', async () => {
  for (const width of [1, 2, 4, 32]) {
    const moments = await momentsOf(powerLawRows(100, width, 6), width);
    const fitted = await fitBasis(moments, { backend, rank: width });
    assert.equal(fitted.rank, width);
    assert.ok(Math.abs(sum(fitted.variances) / fitted.totalEnergy - 1) < 1e-5);
    assert.ok((await examine(moments, fitted)).orthonormality < 1e-5);
  }
});

test('features that never move, fewer rows than rank and rest alone reduce the rank and say so', async () => {
  const width = 64;
  for (const [rows, rank] of [
    [powerLawRows(200, width, 7, 16), 16],
    [powerLawRows(10, width, 7), 9],
    [new Float32Array(50 * width).fill(2), 1],
  ] as const) {
    for (const wholeWidth of [1024, 0]) {
      const moments = await momentsOf(rows, width);
      const events: KvtcEvent[] = [];
      const fitted = await fitBasis(moments, { backend, rank: 40, wholeWidth, onEvent: (event) => events.push(event) });
      assert.equal(fitted.rank, rank);
      assert.equal(fitted.basis.length, rank * width);
      assert.equal(fitted.variances.length, rank);
      assert.ok(events.some((event) => event.type === 'warning' && event.message.includes(`fitted ${rank}`)));
      assert.ok((await examine(moments, fitted)).orthonormality < 1e-5);
      assert.ok(sum(fitted.variances) >= 0.9999 * fitted.totalEnergy);
    }
  }
});

test('progress never falls, ends at its total, and an abort is obeyed', async () => {
  const moments = await momentsOf(powerLawRows(500, 256, 8), 256);
  const seen: { done: number; total: number }[] = [];
  const abort = new AbortController();
  await fitBasis(moments, {
    backend,
    rank: 32,
    wholeWidth: 0,
    onEvent: (event) => {
      if (event.type === 'progress' && event.phase === 'basis') seen.push(event);
    },
  });
  seen.forEach((event, i) => assert.ok(i === 0 || event.done >= seen[i - 1]!.done));
  assert.equal(seen.at(-1)?.done, seen.at(-1)?.total);
  await assert.rejects(
    fitBasis(moments, { backend, rank: 32, wholeWidth: 0, signal: abort.signal, onEvent: () => abort.abort() }),
    (error) => isKvtcError(error, 'KVTC_ABORTED'),
  );
});

test('variances that span more than f32 resolves are all found', async () => {
  const [width, rank, octaves] = [768, 448, 24.5];
  const truth = Float64Array.from({ length: width }, (_, i) => 2 ** ((-octaves * i) / rank));
  // Two reflections turn the diagonal: C = H₂·H₁·Λ·H₁·H₂.
  const matrix = new Float64Array(width * width);
  for (let i = 0; i < width; i++) matrix[i * width + i] = truth[i]!;
  const random = seededRandom(8);
  for (let reflection = 0; reflection < 2; reflection++) {
    const v = Float64Array.from({ length: width }, () => random.normal());
    const norm = v.reduce((sum, x) => sum + x * x, 0);
    const image = Float64Array.from({ length: width }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < width; j++) sum += matrix[i * width + j]! * v[j]!;
      return sum;
    });
    const inner = image.reduce((sum, x, i) => sum + x * v[i]!, 0);
    for (let i = 0; i < width; i++) {
      for (let j = 0; j < width; j++) {
        matrix[i * width + j]! +=
          (-2 * (image[i]! * v[j]! + v[i]! * image[j]!)) / norm + (4 * inner * v[i]! * v[j]!) / norm ** 2;
      }
    }
  }
  const covariance = denseMatrix(Float32Array.from(matrix), width, width);
  const options = { backend, rank, wholeWidth: 0, tolerance: 1e-3 };
  const found = await leadingEigenvectors(covariance, 1 / (1 - truth[1]!), rank, options);
  for (let i = 0; i < rank; i++) {
    assert.ok(Math.abs(Math.log2(found.values[i]! / truth[i]!)) < 0.3, `${i}: ${found.values[i]}, ${truth[i]}`);
  }
});

test('less than two rows are refused', async () => {
  const rows = powerLawRows(1, 8, 1);
  const moments = createMoments(fitMomentsFrame(rows, 1, 8, ''));
  await assert.rejects(fitBasis(moments, { backend, rank: 2 }), (error) =>
    isKvtcError(error, 'KVTC_CALIBRATION_TEXT_SHORT'),
  );
});
