import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isKvtcError } from '../../base/errors.ts';
import { allocateBits, planBits, planForError, ratioBudgetBits } from './allocation.ts';
import type { CandidateOptions, ErrorTables } from './error-tables.ts';
import { measureErrors } from './error-tables.ts';
import { referenceResults, sampleCoefficients } from '../../../test/paper-reference.ts';
import { paperCodec } from './paper-codec.ts';
import type { PaperPlan } from './plan.ts';
import { CODE_BITS, planProblem } from './plan.ts';

const invalidOption = (error: unknown): boolean => isKvtcError(error, 'KVTC_OPTION_INVALID');

function tablesOf(rows: number, rank: number, seed: number, options?: CandidateOptions): ErrorTables {
  return measureErrors(sampleCoefficients(rows, rank, seed), rows, rank, options);
}

/** Adjacent fp8 groups joined: grouping fp8 components differently costs nothing and changes no error, only ties. */
function withoutTies(plan: PaperPlan): string[] {
  const parts: { type: string; start: number; end: number }[] = [];
  for (const { type, start, size } of plan.groups) {
    const last = parts.at(-1);
    if (type === 'fp8' && last?.type === 'fp8' && last.end === start) last.end += size;
    else parts.push({ type, start, end: start + size });
  }
  return parts.map(({ type, start, end }) => `${type} ${start}-${end}`);
}

function planCostBits(plan: PaperPlan, fp8MetadataBits = 0): number {
  return plan.groups.reduce(
    (bits, { size, type }) => bits + size * CODE_BITS[type] + (type === 'fp8' ? fp8MetadataBits : 32),
    0,
  );
}

/** Mean squared error of coding the rows with the plan, by the codec itself. */
function codedError(coefficients: Float32Array, rows: number, rank: number, plan: PaperPlan): number {
  const used = new Float32Array(rows * plan.rank);
  for (let t = 0; t < rows; t++) used.set(coefficients.subarray(t * rank, t * rank + plan.rank), t * plan.rank);
  const out = new Float32Array(used.length);
  paperCodec.decodeChunk(paperCodec.encodeChunk(used, rows, plan), rows, plan, out);
  let sum = 0;
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < rank; c++) {
      const got = c < plan.rank ? (out[t * plan.rank + c] as number) : 0;
      sum += ((coefficients[t * rank + c] as number) - got) ** 2;
    }
  }
  return sum / rows;
}

/** Least error by trying every sequence of groups: the definition, exponential in rank. */
function bruteForce(tables: ErrorTables, budgetBits: number, fp8MetadataBits = 0): number {
  const search = (start: number, left: number): number => {
    if (start >= tables.rank) return 0;
    const step = tables.sizes.some(({ size }) => size === 1) && start < 64 ? 1 : 16;
    let energy = 0;
    for (let c = start; c < Math.min(start + step, tables.rank); c++) energy += tables.energy[c] as number;
    let best = energy + search(start + step, left);
    for (const table of tables.sizes) {
      const at = table.starts.indexOf(start);
      if (at < 0) continue;
      for (const type of tables.types) {
        const cost = table.size * CODE_BITS[type] + (type === 'fp8' ? fp8MetadataBits : 32);
        if (cost > left) continue;
        best = Math.min(best, (table.errors[type][at] as number) + search(start + table.size, left - cost));
      }
    }
    return best;
  };
  return search(0, budgetBits);
}

test('plans and predicted errors equal those of the independent numpy implementation', async () => {
  const allocation = allocateBits(tablesOf(256, 640, 5), ratioBudgetBits(1280, 4));
  for (const { ratio, plan, relativeError } of await referenceResults()) {
    const planned = planBits(allocation, ratioBudgetBits(1280, ratio));
    assert.ok(Math.abs(planned.relativeError / relativeError - 1) < 1e-6, `${ratio}: ${planned.relativeError}`);
    assert.deepEqual(withoutTies(planned.plan), withoutTies(plan));
  }
});

test('no sequence of groups beats the plan', () => {
  for (const [seed, rank, sizes, budgets] of [
    [1, 64, [16, 64], [0, 30, 64, 100, 160, 300, 600]],
    [2, 96, [16, 64], [96, 200, 350]],
    [3, 80, [16, 32, 48], [96, 128, 350, 4000]],
  ] as const) {
    for (const fp8Metadata of [false, true]) {
      const tables = tablesOf(40, rank, seed, { sizes });
      const allocation = allocateBits(tables, 4000, { fp8Metadata });
      for (const budget of budgets) {
        const { squaredError, usedBits, plan } = planBits(allocation, budget);
        const expected = bruteForce(tables, budget, fp8Metadata ? 32 : 0);
        assert.ok(
          Math.abs(squaredError - expected) <= 1e-9 * (expected + 1),
          `${budget}: ${squaredError} ≠ ${expected}`,
        );
        assert.ok(usedBits <= budget);
        assert.equal(planCostBits(plan, fp8Metadata ? 32 : 0), usedBits);
      }
    }
  }
});

test('single components are planned at their own cost', () => {
  const tables = tablesOf(30, 16, 4, { sizes: [1], types: ['fp8'] });
  const allocation = allocateBits(tables, 128);
  for (const budget of [7, 8, 23, 24, 128]) {
    const { plan, squaredError } = planBits(allocation, budget);
    assert.equal(plan.groups.length, Math.floor(budget / 8));
    assert.ok(Math.abs(squaredError - bruteForce(tables, budget)) < 1e-9 * squaredError + 1e-12);
  }
});

test('the predicted error is the error of coding the same rows', () => {
  const coefficients = sampleCoefficients(64, 320, 9);
  const allocation = allocateBits(measureErrors(coefficients, 64, 320), 2000);
  for (const budget of [0, 100, 500, 1000, 2000]) {
    const { plan, squaredError } = planBits(allocation, budget);
    assert.equal(planProblem(plan, 320), null);
    const actual = codedError(coefficients, 64, 320, plan);
    assert.ok(Math.abs(actual - squaredError) < 1e-6 * actual, `${budget}: ${squaredError} predicted, ${actual} coded`);
  }
});

test('more bits never predict more error, and every plan keeps to its budget', () => {
  const allocation = allocateBits(tablesOf(32, 320, 11), 3000);
  let previous = Infinity;
  for (let budget = 0; budget <= 3000; budget += 37) {
    const { squaredError, usedBits } = planBits(allocation, budget);
    assert.ok(squaredError <= previous && usedBits <= budget);
    previous = squaredError;
  }
});

test('the dual finds the fewest bits under an error bound, from the same table', () => {
  const allocation = allocateBits(tablesOf(32, 320, 12), 2400);
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2400 }), (budget) => {
      const { relativeError, usedBits } = planBits(allocation, budget);
      const dual = planForError(allocation, relativeError * (1 + 1e-12));
      assert.ok(dual.usedBits <= usedBits);
      assert.ok(dual.relativeError <= relativeError * (1 + 1e-12));
      if (dual.usedBits >= 2) {
        assert.ok(planBits(allocation, dual.usedBits - 2).relativeError > relativeError * (1 + 1e-12));
      }
    }),
  );
  assert.deepEqual(planForError(allocation, 1).plan, { rank: 0, groups: [] });
  assert.throws(() => planForError(allocation, 1e-12), invalidOption);
  assert.throws(() => planForError(allocation, Number.NaN), invalidOption);
});

test('equal errors take the fewer bits, then the smaller groups', () => {
  // Powers of two: fp8 is exact in groups of any size, and so is int2 where a group holds one value.
  const rows = 8;
  const coefficients = new Float32Array(rows * 16).map((_, i) => (i % 16 < 4 ? 2 : 0));
  const allocation = allocateBits(measureErrors(coefficients, rows, 16), 4000);
  const { plan, usedBits, squaredError } = planBits(allocation, 4000);
  assert.equal(squaredError, 0);
  assert.equal(usedBits, 32);
  assert.deepEqual(
    plan.groups.map(({ start, size, type }) => [start, size, type]),
    [0, 1, 2, 3].map((start) => [start, 1, 'fp8']),
  );
});

test('an fp8 price with metadata never lowers the predicted error at a budget', () => {
  const tables = tablesOf(32, 160, 13);
  const cheap = allocateBits(tables, 1200);
  const dear = allocateBits(tables, 1200, { fp8Metadata: true });
  let dearer = 0;
  for (let budget = 0; budget <= 1200; budget += 60) {
    const difference = planBits(dear, budget).squaredError - planBits(cheap, budget).squaredError;
    assert.ok(difference >= -1e-9);
    if (difference > 1e-6) dearer++;
  }
  assert.ok(dearer > 0);
});

test('energy outside the basis counts as error', () => {
  const inside = planBits(allocateBits(tablesOf(32, 64, 14), 200), 200);
  const tables = tablesOf(32, 64, 14, { outsideEnergy: 50 });
  const outside = planBits(allocateBits(tables, 200), 200);
  assert.deepEqual(outside.plan, inside.plan);
  assert.ok(Math.abs(outside.squaredError - inside.squaredError - 50) < 1e-9);
  assert.ok(outside.relativeError > inside.relativeError);
});

test('a budget no plan can spend is answered from a table of bounded size', () => {
  const allocation = allocateBits(tablesOf(16, 64, 15), 1e12);
  assert.ok(allocation.gain.length < 64 * 40);
  assert.ok(planBits(allocation, 1e12).relativeError < 1e-3);
});

test('rows of zeros plan nothing and predict no error', () => {
  const tables = measureErrors(new Float32Array(16 * 32), 16, 32);
  const { plan, relativeError } = planBits(allocateBits(tables, 500), 500);
  assert.deepEqual(plan, { rank: 0, groups: [] });
  assert.equal(relativeError, 0);
});

test('bad ranks, sizes, budgets, ratios and values are refused', () => {
  const zeros = new Float32Array(64 * 4);
  assert.throws(() => measureErrors(zeros, 4, 40), invalidOption);
  for (const sizes of [[], [0], [1, 8], [16, 16], [1.5]]) {
    assert.throws(() => measureErrors(zeros, 4, 64, { sizes }), invalidOption);
  }
  zeros[77] = Number.NaN;
  assert.throws(
    () => measureErrors(zeros, 4, 64),
    (error) => isKvtcError(error, 'KVTC_ROWS_NOT_FINITE'),
  );
  const allocation = allocateBits(tablesOf(4, 16, 16), 100);
  assert.throws(() => planBits(allocation, 101), invalidOption);
  assert.throws(() => planBits(allocation, -1), invalidOption);
  assert.throws(() => ratioBudgetBits(5760, 0), invalidOption);
  assert.equal(ratioBudgetBits(5760, 7), 13_165);
});
