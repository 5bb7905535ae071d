// Seeded Laplacian coefficients with a falling spectrum, and tables trained on them, for the tests of this room.

import { seededRandom } from '../../base/random.ts';
import { scaleIndices } from './classes.ts';
import type { StreamTables } from './plan.ts';
import { trainTables } from './train.ts';

/** σ of component i. */
export function testDeviation(i: number): number {
  return 12 / (1 + i / 4);
}

/** f32[tokenCount, rank]; every token has its own scale within a factor of two. */
export function laplaceRows(tokenCount: number, rank: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const rows = new Float32Array(tokenCount * rank);
  for (let t = 0; t < tokenCount; t++) {
    const scale = 2 ** (random.uniform() - 0.5) / Math.SQRT2;
    for (let i = 0; i < rank; i++) {
      const u = random.uniform() - 0.5;
      rows[t * rank + i] = -Math.sign(u) * Math.log(1 - 2 * Math.abs(u) + 1e-12) * testDeviation(i) * scale;
    }
  }
  return rows;
}

export function testTables(rank: number): StreamTables {
  const scales = scaleIndices(Float32Array.from({ length: rank }, (_, i) => testDeviation(i)));
  const rows = { coefficients: laplaceRows(300, rank, 4), tokenCount: 300, rank };
  return { scales, family: trainTables(rows, scales, [-768, -512, -256, -128, 0, 128, 256, 512]) };
}
