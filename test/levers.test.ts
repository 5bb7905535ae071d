// The estimators behind docs/levers.md, on samples whose answer is known.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { seededRandom } from '../src/base/random.ts';
import type { RateError, States, TokenSamples } from '../tools/levers/quantisers.ts';
import { quantise, rateAtError, trainQuantiser } from '../tools/levers/quantisers.ts';

/** Uniform in ±8 steps of the coarsest: at high rates a quantiser's gain does not depend on the distribution. */
function samples(seed: number, step: number): TokenSamples[] {
  const random = seededRandom(seed);
  return Array.from({ length: 8 }, () => ({
    values: Float64Array.from({ length: 600 }, () => (16 * random.uniform() - 8) / step),
    classes: new Uint8Array(600).fill(19),
    weight: step ** 2,
    otherBits: 10,
    otherError: 0,
  }));
}

function curve(states: States): RateError[] {
  return [0.5, 0.63, 0.8, 1, 1.26, 1.6].map((step) => {
    const model = trainQuantiser(samples(1, step), states, Math.LN2 / 6);
    return quantise(samples(2, step), model, Math.LN2 / 6);
  });
}

describe('quantisers with ideal code lengths', () => {
  const uniform = curve(1);

  it('lose a bit a sample less for every halving of the step, and err by a twelfth of its square', () => {
    const [fine, , , coarse] = uniform as [RateError, RateError, RateError, RateError];
    const samplesCoded = 8 * 600;
    assert.ok(Math.abs((fine.bits - coarse.bits) / samplesCoded - 1) < 0.06, `${fine.bits} ${coarse.bits}`);
    assert.ok(Math.abs(coarse.error / samplesCoded / (1 / 12) - 1) < 0.1, `${coarse.error}`);
    assert.ok(coarse.bits > 80 && Math.abs(coarse.bits / samplesCoded - 4) < 0.15, 'log2 of 16 values');
  });

  it('save about a sixth of a bit a sample with four states, more with eight, as trellises do', () => {
    const { bits, error } = uniform[2] as RateError;
    const saved = ([4, 8] as const).map((states) => (bits - rateAtError(curve(states), error)) / (8 * 600));
    const [four = 0, eight = 0] = saved;
    assert.ok(four > 0.1 && four < 0.2, `${four}`);
    assert.ok(eight > four && eight < 0.25, `${eight}`);
  });

  it('read rates between measured errors only', () => {
    const points = [
      { bits: 100, error: 1 },
      { bits: 50, error: 4 },
    ];
    assert.ok(Math.abs(rateAtError(points, 2) - 100 / Math.SQRT2) < 1e-9);
    assert.equal(rateAtError(points, 4), 50);
    assert.ok(Number.isNaN(rateAtError(points, 5)) && Number.isNaN(rateAtError(points, 0.5)));
  });
});
