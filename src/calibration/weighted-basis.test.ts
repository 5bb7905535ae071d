import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { symmetricEigen } from '../linalg/symmetric-eigen.ts';
import { fitBasis } from './basis.ts';
import { accumulateMoments, covarianceMatrix, createMoments, fitMomentsFrame } from './moments.ts';
import type { Moments } from './moments.ts';
import type { HeadMetrics } from './sensitivity-file.ts';
import { factorMetrics, fitWeightedBasis } from './weighted-basis.ts';

const backend = openGgmlBackend();
after(() => backend.close());
const [LAYERS, HEADS, DIM] = [4, 2, 8] as const;
const WIDTH = LAYERS * HEADS * DIM;

async function correlatedMoments(seed: number, rowCount = 400): Promise<Moments> {
  const random = seededRandom(seed);
  const mix = Float64Array.from({ length: WIDTH * WIDTH }, () => random.normal());
  const rows = new Float32Array(rowCount * WIDTH);
  for (let r = 0; r < rowCount; r++) {
    const hidden = Float64Array.from({ length: WIDTH }, (_, i) => random.normal() * (i + 3) ** -0.8);
    for (let i = 0; i < WIDTH; i++) {
      let sum = i / 7;
      for (let j = 0; j < WIDTH; j++) sum += mix[i * WIDTH + j]! * hidden[j]!;
      rows[r * WIDTH + i] = sum;
    }
  }
  const moments = createMoments(fitMomentsFrame(rows, rowCount, WIDTH, 'test'));
  await accumulateMoments(moments, rows, rowCount, { backend, precision: 'f32' });
  return moments;
}

function metricsOf(block: (h: number, random: () => number) => number[]): HeadMetrics {
  const random = seededRandom(11);
  const blocks: number[] = [];
  for (let h = 0; h < LAYERS * HEADS; h++) blocks.push(...block(h, () => random.normal()));
  return { heads: LAYERS * HEADS, headDim: DIM, blocks: Float32Array.from(blocks) };
}

const identity = metricsOf(() => Array.from({ length: DIM * DIM }, (_, i) => (i % (DIM + 1) === 0 ? 1 : 0)));
/** B·Bᵀ of random B, heads differing in size by three orders of magnitude. */
const uneven = metricsOf((h, draw) => {
  const b = Array.from({ length: DIM * DIM }, draw);
  const size = 10 ** ((h % 4) - 2);
  return Array.from({ length: DIM * DIM }, (_, at) => {
    let sum = 0;
    for (let k = 0; k < DIM; k++) sum += b[Math.floor(at / DIM) * DIM + k]! * b[(at % DIM) * DIM + k]!;
    return sum * size;
  });
});

/** rowsA · rowsBᵀ */
function products(a: Float32Array, b: Float32Array, width: number): number[][] {
  const list = (m: Float32Array): Float32Array[] =>
    Array.from({ length: m.length / width }, (_, k) => m.subarray(k * width, (k + 1) * width));
  return list(a).map((x) => list(b).map((y) => x.reduce((sum, v, i) => sum + v * y[i]!, 0)));
}

test('with equal metrics it is the plain basis, scaled', async () => {
  const moments = await correlatedMoments(1);
  const plain = await fitBasis(moments, { backend, rank: 16 });
  const weighted = await fitWeightedBasis(moments, identity, { backend, rank: 16 });
  const scale = 1.01 + 1e-4;
  assert.deepEqual(weighted.mean, plain.mean);
  plain.variances.forEach((v, i) => assert.ok(Math.abs(weighted.variances[i]! / v / scale - 1) < 1e-4));
  products(plain.basis, weighted.synthesis, WIDTH).forEach((row, i) =>
    assert.ok(Math.abs(Math.abs(row[i]!) * Math.sqrt(scale) - 1) < 1e-3, `component ${i} is the same direction`),
  );
});

for (const groups of [1, 2]) {
  test(`in ${groups} group(s), synthesis undoes analysis and coefficients are decorrelated with the stated variances`, async () => {
    const moments = await correlatedMoments(2);
    const rank = WIDTH;
    const fitted = await fitWeightedBasis(moments, uneven, { backend, rank, layers: LAYERS, groups });
    products(fitted.analysis, fitted.synthesis, WIDTH).forEach((row, i) =>
      row.forEach((value, j) => assert.ok(Math.abs(value - (i === j ? 1 : 0)) < 2e-3, `${i}, ${j}: ${value}`)),
    );
    const covariance = new Float32Array(WIDTH * WIDTH);
    await covarianceMatrix(moments).read(0, WIDTH, covariance);
    const image = products(fitted.analysis, covariance, WIDTH);
    for (let i = 0; i < rank; i++) {
      for (let j = 0; j < rank; j++) {
        const value = image[i]!.reduce((sum, v, k) => sum + v * fitted.analysis[j * WIDTH + k]!, 0);
        const size = Math.sqrt(fitted.variances[i]! * fitted.variances[j]!);
        // The tail carries the rounding of the largest.
        if (i === j) assert.ok(Math.abs(value - size) < 1e-3 * size + 1e-6 * fitted.variances[0]!);
        else if (groups === 1 && i < 16 && j < 16) assert.ok(Math.abs(value) / size < 1e-3);
      }
    }
    if (groups === 2) {
      const half = WIDTH / 2;
      for (let k = 0; k < rank; k++) {
        const row = fitted.synthesis.subarray(k * WIDTH, (k + 1) * WIDTH);
        const [low, high] = [row.subarray(0, half), row.subarray(half)].map((part) => part.every((v) => v === 0));
        assert.ok(low !== high, `component ${k} lives in one group`);
      }
    }
  });
}

test('it loses less weighted error than the plain basis of the same rank, and as little as can be', async () => {
  const moments = await correlatedMoments(3);
  const rank = 12;
  const fitted = await fitWeightedBasis(moments, uneven, { backend, rank });
  const { lower } = factorMetrics(uneven);
  const covariance = new Float32Array(WIDTH * WIDTH);
  await covarianceMatrix(moments).read(0, WIDTH, covariance);
  const weighted = new Float64Array(WIDTH * WIDTH);
  const factor = (i: number, j: number): number =>
    Math.floor(i / DIM) === Math.floor(j / DIM) ? lower[i * DIM + (j % DIM)]! : 0;
  for (let i = 0; i < WIDTH; i++) {
    for (let j = 0; j < WIDTH; j++) {
      let sum = 0;
      for (let a = 0; a < WIDTH; a++) {
        if (factor(a, i) === 0) continue;
        for (let b = 0; b < WIDTH; b++) sum += factor(a, i) * covariance[a * WIDTH + b]! * factor(b, j);
      }
      weighted[i * WIDTH + j] = sum;
    }
  }
  const { values } = symmetricEigen(weighted, WIDTH);
  fitted.variances.forEach((v, i) => assert.ok(Math.abs(v / values[i]! - 1) < 1e-3, `value ${i}`));
  const total = values.reduce((a, b) => a + b, 0);
  assert.ok(Math.abs(fitted.totalEnergy / total - 1) < 1e-4);
});

test('metrics that are all zero or not positive are refused', () => {
  const zero = { ...identity, blocks: new Float32Array(identity.blocks.length) };
  const negative = { ...identity, blocks: identity.blocks.map((v, i) => (i === 1 || i === DIM ? 3 : v)) };
  for (const bad of [zero, negative]) {
    assert.throws(
      () => factorMetrics(bad),
      (error) => isKvtcError(error, 'KVTC_SENSITIVITY_MALFORMED'),
    );
  }
});
