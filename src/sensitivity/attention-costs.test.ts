import assert from 'node:assert/strict';
import { test } from 'node:test';
import { uncertainties } from './attention-costs.ts';

test('a certain token weighs nothing, an even choice of n weighs 1 − 1/n, whatever the size of the logits', () => {
  const rows = [
    [0, 200, 0, 0],
    [5, 5, 5, 5],
    [-1000, 700, 700, -1000],
    [Math.log(0.5), Math.log(0.25), Math.log(0.25), -Infinity],
  ];
  const found = uncertainties(Float32Array.from(rows.flat()), 4);
  for (const [i, expected] of [0, 0.75, 0.5, 0.625].entries()) {
    assert.ok(Math.abs(found[i]! - expected) < 1e-6, `row ${i}: ${found[i]}`);
  }
});
