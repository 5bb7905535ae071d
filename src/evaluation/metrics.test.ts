// The metrics on cases computed by hand, and against a plain double-precision loop.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { addScores, createReferenceRows, fastExp, meanScores, recordExact, scoreAgainst } from './metrics.ts';
import type { LogitsSlice } from './metrics.ts';

function sliceOf(logits: readonly number[], targets: readonly number[], firstRow = 0, skippedRows = 0): LogitsSlice {
  return { logits: Float32Array.from(logits), firstRow, skippedRows, targets: Int32Array.from(targets) };
}

function close(got: number, expected: number, tolerance: number): void {
  assert.ok(Math.abs(got - expected) <= tolerance, `got ${got}, expected ${expected} ± ${tolerance}`);
}

function randomLogits(count: number, seed: number, spread: number): number[] {
  const random = seededRandom(seed);
  return Array.from({ length: count }, () => Math.fround(random.normal() * spread));
}

describe('fastExp', () => {
  it('stays within 4e-11 of Math.exp, and ends in 0', () => {
    const random = seededRandom(1);
    const worst = { error: 0, x: 0 };
    for (let i = 0; i < 200_000; i++) {
      const x = i < 1000 ? -i * 0.707 : -random.uniform() * (i % 2 === 0 ? 30 : 707);
      const error = Math.abs(fastExp(x) / Math.exp(x) - 1);
      if (error > worst.error) Object.assign(worst, { error, x });
    }
    assert.ok(worst.error < 4e-11, `relative error ${worst.error} at ${worst.x}`);
    assert.ok(worst.error > 1e-12, 'the sample reaches the middle between table entries');
    assert.equal(fastExp(0), 1);
    assert.ok(fastExp(-708) >= 0);
    assert.equal(fastExp(-709), 0);
    assert.equal(fastExp(-Infinity), 0);
  });
});

describe('the metrics', () => {
  it('give KL, agreement and loss of a case computed by hand', () => {
    // Exact: 1/2, 1/4, 1/4. Other: 1/4, 1/2, 1/4. KL = 1/2 log 2 − 1/4 log 2 = 1/4 log 2.
    const reference = createReferenceRows(1, 3);
    const exact = recordExact(reference, sliceOf([Math.log(2), 0, 0], [0]));
    close(exact.lossSum, Math.log(2), 1e-7);
    assert.deepEqual({ ...exact, lossSum: 0 }, { rows: 1, klSum: 0, agreements: 1, targets: 1, lossSum: 0, hits: 1 });
    const other = scoreAgainst(reference, sliceOf([5, 5 + Math.log(2), 5], [0]));
    close(other.klSum, Math.log(2) / 4, 1e-7);
    close(other.lossSum, Math.log(4), 1e-6);
    assert.deepEqual([other.rows, other.agreements, other.targets, other.hits], [1, 0, 1, 0]);
  });

  it('are exactly 0 nats for equal logits, and blind to a shift of a whole row', () => {
    const logits = randomLogits(4 * 500, 2, 4);
    const reference = createReferenceRows(4, 500);
    const targets = [3, 4, 5, -1];
    const exact = recordExact(reference, sliceOf(logits, targets));
    assert.deepEqual(scoreAgainst(reference, sliceOf(logits, targets)), exact);
    assert.equal(exact.targets, 3);
    const shifted = scoreAgainst(
      reference,
      sliceOf(
        logits.map((x) => x + 64),
        targets,
      ),
    );
    close(shifted.klSum, 0, 1e-9);
  });

  it('agree with a plain loop in double precision, for distributions near and far', () => {
    const [rows, vocabulary] = [6, 2000];
    const exact = randomLogits(rows * vocabulary, 3, 5);
    for (const [spread, tolerance] of [
      [1e-3, 1e-10],
      [0.3, 1e-8],
      [20, 1e-6],
    ] as const) {
      const noise = randomLogits(rows * vocabulary, 4, spread);
      const other = exact.map((x, i) => Math.fround(x + (noise[i] as number)));
      const targets = Array.from({ length: rows }, (_, i) => 7 * i);
      const reference = createReferenceRows(rows, vocabulary);
      const exactScores = recordExact(reference, sliceOf(exact, targets));
      const scores = scoreAgainst(reference, sliceOf(other, targets));
      const plain = plainScores(exact, other, targets, vocabulary);
      close(scores.klSum, plain.kl, tolerance * rows);
      close(scores.lossSum, plain.loss, 1e-8);
      close(exactScores.lossSum, plain.exactLoss, 1e-8);
      assert.equal(scores.agreements, plain.agreements);
    }
  });

  it('add up over slices as over the whole, and skip the first rows of a probe', () => {
    const [rows, vocabulary] = [8, 100];
    const exact = randomLogits(rows * vocabulary, 5, 3);
    const other = randomLogits(rows * vocabulary, 6, 3);
    const targets = [1, 2, 3, 4, 5, 6, 7, -1];
    const whole = createReferenceRows(rows, vocabulary);
    recordExact(whole, sliceOf(exact, targets, 0, 3));
    const once = scoreAgainst(whole, sliceOf(other, targets, 0, 3));
    assert.equal(once.rows, 5);
    assert.equal(once.targets, 4);
    const cut = createReferenceRows(rows, vocabulary);
    const parts = [0, 2, 6].map((from, i) => {
      const to = [2, 6, 8][i] as number;
      const part = [from * vocabulary, to * vocabulary] as const;
      recordExact(cut, sliceOf(exact.slice(...part), targets.slice(from, to), from, 3));
      return scoreAgainst(cut, sliceOf(other.slice(...part), targets.slice(from, to), from, 3));
    });
    const sum = addScores(...parts);
    close(sum.klSum, once.klSum, 1e-9);
    close(sum.lossSum, once.lossSum, 1e-9);
    assert.deepEqual({ ...sum, klSum: 0, lossSum: 0 }, { ...once, klSum: 0, lossSum: 0 });
    close(meanScores(once).klNats, once.klSum / 5, 1e-12);
    close(meanScores(once).perplexity, Math.exp(once.lossSum / 4), 1e-9);
  });

  it('refuse logits that are not finite', () => {
    const reference = createReferenceRows(1, 3);
    recordExact(reference, sliceOf([1, 2, 3], [0]));
    for (const bad of [NaN, Infinity]) {
      assert.throws(
        () => scoreAgainst(reference, sliceOf([1, bad, 3], [0])),
        (error) => isKvtcError(error, 'KVTC_ENGINE_FAILED'),
      );
    }
  });
});

function plainScores(exact: readonly number[], other: readonly number[], targets: readonly number[], size: number) {
  const sums = { kl: 0, loss: 0, exactLoss: 0, agreements: 0 };
  const logProbabilities = (row: readonly number[]): number[] => {
    const highest = Math.max(...row);
    const logSum = highest + Math.log(row.reduce((sum, x) => sum + Math.exp(x - highest), 0));
    return row.map((x) => x - logSum);
  };
  for (const [row, target] of targets.entries()) {
    const a = logProbabilities(exact.slice(row * size, (row + 1) * size));
    const b = logProbabilities(other.slice(row * size, (row + 1) * size));
    sums.kl += a.reduce((sum, la, i) => sum + Math.exp(la) * (la - (b[i] as number)), 0);
    sums.loss -= b[target] as number;
    sums.exactLoss -= a[target] as number;
    if (a.indexOf(Math.max(...a)) === b.indexOf(Math.max(...b))) sums.agreements += 1;
  }
  return sums;
}
