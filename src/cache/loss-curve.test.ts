// Reading between measured points.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { lossAt, ratioWithin } from './loss-curve.ts';

describe('ratioWithin', () => {
  const points = [
    { ratio: 40, loss: 0.01 },
    { ratio: 10, loss: 0.0001 },
    { ratio: 20, loss: 0.001 },
  ];

  it('reads between two measured points on a log-log line', () => {
    assert.deepEqual(ratioWithin(points, 0.001), { relation: 'equal', ratio: 20 });
    const between = ratioWithin(points, Math.sqrt(0.001 * 0.01));
    assert.equal(between.relation, 'equal');
    assert.ok(Math.abs(between.ratio - Math.sqrt(20 * 40)) < 1e-9);
  });

  it('says bounds instead of going beyond the measured points', () => {
    assert.deepEqual(ratioWithin(points, 0.5), { relation: 'atLeast', ratio: 40 });
    assert.deepEqual(ratioWithin(points, 0.00001), { relation: 'below', ratio: 10 });
    assert.deepEqual(ratioWithin(points, NaN), { relation: 'below', ratio: 10 });
  });

  it('takes the first crossing of a curve that falls again, and a loss of nothing for little', () => {
    const bent = [...points, { ratio: 30, loss: 0.05 }];
    assert.ok(ratioWithin(bent, 0.01).ratio < 30);
    assert.ok(ratioWithin([{ ratio: 1, loss: 0 }, ...points], 0.00005).ratio > 1);
  });
});

describe('lossAt', () => {
  const points = [
    { ratio: 40, loss: 0.01 },
    { ratio: 10, loss: 0.0001 },
  ];

  it('is the measured loss at a point, on the line between two, and unknown beyond', () => {
    assert.equal(lossAt(points, 40), 0.01);
    assert.ok(Math.abs((lossAt(points, 20) ?? 0) - 0.001) < 1e-12);
    assert.equal(lossAt(points, 9.99), null);
    assert.equal(lossAt(points, 40.01), null);
    assert.equal(lossAt([], 1), null);
  });

  it('reads back what ratioWithin reads', () => {
    const { ratio } = ratioWithin(points, 0.0037);
    assert.ok(Math.abs((lossAt(points, ratio) ?? 0) - 0.0037) < 1e-12);
  });
});
