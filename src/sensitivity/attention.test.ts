import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { openReferenceBackend } from '../linalg/reference.ts';
import type { RopeDescription } from '../rope/description.ts';
import { applyRope } from '../rope/rotate.ts';
import type { CostMetrics, HeadRows } from './attention.ts';
import { costMetrics, tokenCosts } from './attention.ts';

const [DIM, TOKENS, QUERIES] = [8, 20, 6] as const;
const backend = openReferenceBackend();
const rope: RopeDescription = {
  pairing: 'interleaved',
  dims: DIM,
  frequencyBase: 100,
  frequencyScale: 1,
  extFactor: 0,
  attnFactor: 1,
  betaFast: 32,
  betaSlow: 1,
  originalContext: 0,
  frequencyFactors: null,
};

function example(readers: number): HeadRows {
  const random = seededRandom(5);
  const draw = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal());
  return {
    headDim: DIM,
    keys: draw(TOKENS * DIM),
    values: draw(TOKENS * DIM),
    readers: Array.from({ length: readers }, () => ({
      queries: draw(QUERIES * DIM),
      outputFactor: Float64Array.from({ length: DIM * DIM }, (_, i) =>
        i % DIM > Math.floor(i / DIM) ? 0 : random.normal(),
      ),
    })),
    rope,
  };
}

/** Lᵀ·output of every query and reader, by the definition of attention, in f64. */
function outputs({ keys, values, readers }: HeadRows): number[] {
  const all: number[] = [];
  for (const { queries, outputFactor } of readers) {
    for (let q = 0; q < QUERIES; q++) {
      const seen = TOKENS - QUERIES + q + 1;
      const scores = Array.from({ length: seen }, (_, t) => {
        let sum = 0;
        for (let d = 0; d < DIM; d++) sum += queries[q * DIM + d]! * keys[t * DIM + d]!;
        return Math.exp(sum / Math.sqrt(DIM));
      });
      const total = scores.reduce((a, b) => a + b, 0);
      const out = Array.from({ length: DIM }, (_, d) =>
        scores.reduce((sum, a, t) => sum + (a / total) * values[t * DIM + d]!, 0),
      );
      for (let i = 0; i < DIM; i++) {
        all.push(out.reduce((sum, o, j) => sum + outputFactor[j * DIM + i]! * o, 0));
      }
    }
  }
  return all;
}

/** Energy that errors `error` (before RoPE) in the rows of one token move the outputs by. */
function movedEnergy(rows: HeadRows, stream: 'keys' | 'values', token: number, error: Float32Array): number {
  const before = outputs(rows);
  const changed = rows[stream].slice();
  const turned = error.slice();
  if (stream === 'keys') applyRope(turned, Int32Array.of(token), rope, { heads: 1, headDim: DIM });
  for (let d = 0; d < DIM; d++) changed[token * DIM + d]! += turned[d]!;
  const after = outputs({ ...rows, [stream]: changed });
  return after.reduce((sum, value, i) => sum + (value - before[i]!) ** 2, 0);
}

test('metrics and importances give what small errors really move the outputs by', async () => {
  const rows = example(2);
  const range = { startToken: 1, endToken: 14 };
  const count = range.endToken - range.startToken;
  const random = seededRandom(9);
  const weightsOf = (): Float64Array => Float64Array.from({ length: count }, () => random.uniform() + 0.1);
  const weights = { key: weightsOf(), value: weightsOf() };
  const metrics = await costMetrics(rows, range, weights, { pairs: 200_000, random: seededRandom(1) }, backend);
  const costs = await tokenCosts(rows, range, backend);
  for (let trial = 0; trial < 4; trial++) {
    const error = Float32Array.from({ length: DIM }, () => 1e-3 * random.normal());
    for (const [stream, kind, tolerance] of [
      ['keys', 'key', 0.02],
      ['values', 'value', 1e-3],
    ] as const) {
      const metric = metrics[kind];
      let actual = 0;
      for (let t = range.startToken; t < range.endToken; t++) {
        actual += weights[kind][t - range.startToken]! * movedEnergy(rows, stream, t, error);
      }
      let predicted = 0;
      for (let i = 0; i < DIM; i++) {
        for (let j = 0; j < DIM; j++) predicted += count * error[i]! * metric[i * DIM + j]! * error[j]!;
      }
      assert.ok(Math.abs(predicted / actual - 1) < tolerance, `${stream}: ${predicted}, ${actual}`);
    }
  }
  // Value errors in all directions together: the trace.
  for (const t of [1, 7, 13]) {
    let actual = 0;
    for (let d = 0; d < DIM; d++) {
      const error = new Float32Array(DIM);
      error[d] = 1e-2;
      actual += movedEnergy(rows, 'values', t, error) / 1e-4;
    }
    assert.ok(Math.abs(costs.value[t - 1]! / actual - 1) < 1e-3, `token ${t}`);
  }
});

test('few drawn pairs give the metric of many, with noise', async () => {
  const rows = example(1);
  const range = { startToken: 0, endToken: 14 };
  const trace = (m: Float64Array): number => m.reduce((sum, v, i) => sum + (i % (DIM + 1) === 0 ? v : 0), 0);
  const weights = { key: new Float64Array(14).fill(1), value: new Float64Array(14).fill(1) };
  const drawn = (pairs: number, seed: number): Promise<CostMetrics> =>
    costMetrics(rows, range, weights, { pairs, random: seededRandom(seed) }, backend);
  const [many, few] = [await drawn(100_000, 1), await drawn(200, 2)];
  assert.ok(Math.abs(trace(few.key) / trace(many.key) - 1) < 0.2);
  assert.notDeepEqual(few.key, many.key);
  assert.deepEqual(few.value, many.value);
});
