import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import type { RopeDescription } from './description.ts';
import { applyRope, ropeAngles, undoRope } from './rotate.ts';

const plain: RopeDescription = {
  pairing: 'interleaved',
  dims: 8,
  frequencyBase: 10_000,
  frequencyScale: 1,
  extFactor: 0,
  attnFactor: 1,
  betaFast: 32,
  betaSlow: 1,
  originalContext: 4096,
  frequencyFactors: null,
};

const CASES: Readonly<Record<string, RopeDescription>> = {
  'interleaved pairs': plain,
  'half-split pairs': { ...plain, pairing: 'half-split' },
  'part of a head': { ...plain, pairing: 'half-split', dims: 4 },
  'linear scaling': { ...plain, frequencyScale: 0.25 },
  YaRN: { ...plain, frequencyScale: 0.25, extFactor: 1, attnFactor: 0.9, originalContext: 64 },
  'frequency factors': { ...plain, frequencyFactors: [1, 1.5, 4, 8] },
};

function rows(tokens: number, width: number): Float32Array {
  const random = seededRandom(7);
  return Float32Array.from({ length: tokens * width }, () => random.normal());
}

for (const [name, rope] of Object.entries(CASES)) {
  test(`undoing gives back what was rotated: ${name}`, () => {
    const positions = Int32Array.of(0, 1, 77, 4095, 131_071);
    const values = rows(positions.length, 24);
    const rotated = new Float32Array(values.length);
    applyRope(values, positions, rope, { heads: 3, headDim: 8 }, rotated);
    const back = new Float32Array(values.length);
    undoRope(rotated, positions, rope, { heads: 3, headDim: 8 }, back);
    let largest = 0;
    back.forEach((x, i) => (largest = Math.max(largest, Math.abs(x - values[i]!))));
    assert.ok(largest < 1e-6, `off by ${largest}`);
    assert.ok(rotated.some((x, i) => Math.abs(x - values[i]!) > 0.1));
    applyRope(values, positions, rope, { heads: 3, headDim: 8 });
    assert.deepEqual(values, rotated, 'in place and out of place agree');
  });
}

test('turns the pairs it should by the angle it should', () => {
  const positions = Int32Array.of(3);
  const interleaved = Float32Array.of(1, 0, 0, 0, 1, 0, 0, 0);
  applyRope(interleaved, positions, plain, { heads: 1, headDim: 8 });
  const expected = [Math.cos(3), Math.sin(3), 0, 0, Math.cos(0.03), Math.sin(0.03), 0, 0];
  interleaved.forEach((x, i) => assert.ok(Math.abs(x - expected[i]!) < 1e-6));
  const split = Float32Array.of(1, 0, 0, 0, 0, 0, 0, 0);
  applyRope(split, positions, { ...plain, pairing: 'half-split' }, { heads: 1, headDim: 8 });
  [Math.cos(3), 0, 0, 0, Math.sin(3), 0, 0, 0].forEach((x, i) => assert.ok(Math.abs(x - split[i]!) < 1e-6));
});

test('divides the angle by the scale and by each factor', () => {
  const [cosines, sines] = [new Float32Array(4), new Float32Array(4)];
  ropeAngles({ ...plain, frequencyScale: 0.5, frequencyFactors: [1, 2, 4, 8] }).fill(10, cosines, sines);
  [10, 1, 0.1, 0.01].forEach((turn, pair) => {
    const angle = (turn * 0.5) / 2 ** pair;
    assert.ok(Math.abs(cosines[pair]! - Math.cos(angle)) < 1e-6 && Math.abs(sines[pair]! - Math.sin(angle)) < 1e-6);
  });
});

test('keeps fast pairs, interpolates slow ones and scales the magnitude under YaRN', () => {
  const rope = { ...plain, dims: 64, frequencyScale: 0.25, extFactor: 1, originalContext: 1024 };
  const { fill, magnitude } = ropeAngles(rope);
  assert.ok(Math.abs(magnitude - (1 + 0.1 * Math.log(4))) < 1e-6);
  const [cosines, sines] = [new Float32Array(32), new Float32Array(32)];
  fill(1, cosines, sines);
  const angle = (pair: number): number => Math.atan2(sines[pair]!, cosines[pair]!);
  assert.ok(Math.abs(angle(0) - 1) < 1e-6);
  assert.ok(Math.abs(angle(31) - 0.25 * 10_000 ** (-62 / 64)) < 1e-9);
});

test('touches no dimension beyond its own', () => {
  const values = rows(2, 16);
  const rotated = values.slice();
  applyRope(rotated, Int32Array.of(5, 6), { ...plain, dims: 4 }, { heads: 2, headDim: 8 });
  for (let at = 0; at < values.length; at++) if (at % 8 >= 4) assert.equal(rotated[at], values[at]);
});
