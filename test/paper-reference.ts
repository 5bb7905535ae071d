// Deterministic coefficients for tests: falling scale, exact arithmetic, so the same bits on every machine.
// And what the independent numpy implementation made of them. Does not know what is tested.

import { readFile } from 'node:fs/promises';
import { seededRandom } from '../src/base/random.ts';
import type { GroupType, PaperPlan } from '../src/codec/paper/plan.ts';

/** f32[rows, rank]: sums of three uniform numbers, scaled by 40 / (1 + component / 4). */
export function sampleCoefficients(rows: number, rank: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const out = new Float32Array(rows * rank);
  for (let i = 0; i < out.length; i++) {
    const spread = random.uniform() + random.uniform() + random.uniform() - 1.5;
    out[i] = (spread * 40) / (1 + (i % rank) / 4);
  }
  return out;
}

/** Results of the numpy implementation on `sampleCoefficients(256, 640, 5)`, planned for width 1 280. */
export interface ReferenceResult {
  readonly ratio: number;
  readonly relativeError: number;
  readonly plan: PaperPlan;
  /** Of the first 100 rows, packed and decoded (f32 [100, plan.rank]). */
  readonly packedSha256: string;
  readonly decodedSha256: string;
}

export async function referenceResults(): Promise<ReferenceResult[]> {
  interface Filed extends Omit<ReferenceResult, 'plan'> {
    readonly rank: number;
    readonly groups: readonly (readonly [number, number, GroupType, number])[];
  }
  const text = await readFile(new URL('paper-reference.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as Filed[]).map(({ rank, groups, ...rest }) => ({
    ...rest,
    plan: { rank, groups: groups.map(([start, size, type, exponent]) => ({ start, size, type, exponent })) },
  }));
}
