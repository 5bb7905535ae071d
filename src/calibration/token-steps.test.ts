import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { openReferenceBackend } from '../linalg/reference.ts';
import { fitTokenPredictor, overGeometricMean, predictTokenClasses, recencyAt } from './token-steps.ts';

const backend = openReferenceBackend();

/** Tokens whose importance follows their first key coefficient and the size of the second value coefficient. */
function examples(tokens: number, seed: number, noise: number) {
  const random = seededRandom(seed);
  const [keyRank, valueRank] = [5, 6];
  const deviations = { key: Float32Array.of(4, 3, 2, 1, 0.5), value: Float32Array.of(8, 4, 2, 1, 1, 0.1) };
  const key = new Float32Array(tokens * keyRank);
  const value = new Float32Array(tokens * valueRank);
  const importance = { key: new Float32Array(tokens), value: new Float32Array(tokens) };
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < keyRank; i++) key[t * keyRank + i] = deviations.key[i]! * random.normal();
    for (let i = 0; i < valueRank; i++) value[t * valueRank + i] = deviations.value[i]! * random.normal();
    const truth = (1.5 * key[t * keyRank]!) / 4 + Math.abs(value[t * valueRank + 1]!) / 4;
    importance.key[t] = 2 ** (truth + noise * random.normal());
    importance.value[t] = 2 ** (-truth + noise * random.normal());
  }
  return { coefficients: { tokens, key, value }, importance, deviations };
}

test('what coefficients say of importance is found, and R² tells how much', async () => {
  const { coefficients, importance, deviations } = examples(3000, 1, 0);
  const exact = await fitTokenPredictor(coefficients, importance, deviations, backend);
  assert.ok(exact.r2.key > 0.999 && exact.r2.value > 0.999, `${exact.r2.key}, ${exact.r2.value}`);
  const noisy = examples(3000, 2, 1.5);
  const { r2 } = await fitTokenPredictor(noisy.coefficients, noisy.importance, deviations, backend);
  const explained = 1.5 ** 2 + (1 - 2 / Math.PI);
  const expected = explained / (explained + 1.5 ** 2);
  assert.ok(Math.abs(r2.key - expected) < 0.08 && Math.abs(r2.value - expected) < 0.08, `${r2.key}, ${r2.value}`);
});

test('how much all of a text matters does not stand in the way of what its tokens say', async () => {
  const { coefficients, importance, deviations } = examples(3000, 1, 0);
  const loud = (values: Float32Array) => values.map((value, t) => (t < 1500 ? value * 64 : value));
  const texts = (values: Float32Array) => [values.subarray(0, 1500), values.subarray(1500)];
  const asIs = { key: loud(importance.key), value: loud(importance.value) };
  const each = (values: Float32Array) =>
    Float32Array.from(texts(values).flatMap((part) => [...overGeometricMean(part)]));
  const { r2: raw } = await fitTokenPredictor(coefficients, asIs, deviations, backend);
  const { r2 } = await fitTokenPredictor(
    coefficients,
    { key: each(asIs.key), value: each(asIs.value) },
    deviations,
    backend,
  );
  assert.ok(r2.key > 0.99 && r2.value > 0.99 && raw.key < 0.5, `${r2.key}, ${r2.value}, ${raw.key}`);

  const odd = overGeometricMean(Float32Array.of(8, 2, Number.NaN, 0));
  assert.deepEqual([...odd], [2, 0.5, Number.NaN, 0]);
});

test('classes are half octaves against the predicted importance, limited, and zero at exponent 0', async () => {
  const { coefficients, importance, deviations } = examples(3000, 3, 0);
  const { predictor } = await fitTokenPredictor(coefficients, importance, deviations, backend);
  const logs = Float64Array.from(importance.key, (w) => Math.log2(w));
  const mean = logs.reduce((a, b) => a + b, 0) / logs.length;
  const { key, value } = predictTokenClasses(predictor, coefficients, 0.5);
  let exact = 0;
  for (let t = 0; t < 3000; t++) {
    const expected = Math.max(-4, Math.min(4, Math.round(-(logs[t]! - mean))));
    if (key[t] === expected) exact++;
    assert.ok(Math.abs(key[t]! - expected) <= 1);
    assert.ok(key[t]! * value[t]! <= 0, 'value importances run the other way');
  }
  assert.ok(exact > 2800, `${exact} of 3000`);
  assert.equal(Math.min(...key), -4);
  assert.deepEqual(predictTokenClasses(predictor, coefficients, 0).key, new Int8Array(3000));
});

test('tokens without importance are left out, and too few are refused', async () => {
  const { coefficients, importance, deviations } = examples(3000, 4, 0.1);
  const plain = await fitTokenPredictor(coefficients, importance, deviations, backend);
  const holes = {
    key: importance.key.map((w, t) => (t < 300 ? NaN : w)),
    value: importance.value,
  };
  const { r2 } = await fitTokenPredictor(coefficients, holes, deviations, backend);
  assert.ok(Math.abs(r2.key - plain.r2.key) < 0.01);
  const gone = { key: importance.key.map((w, t) => (t < 2900 ? NaN : w)), value: importance.value };
  await assert.rejects(fitTokenPredictor(coefficients, gone, deviations, backend), (error) =>
    isKvtcError(error, 'KVTC_CALIBRATION_TEXT_SHORT'),
  );
});

test('recency sums up to about nothing at any length, and what it says of importance is found', async () => {
  for (const tokens of [300, 3000]) {
    const all = Array.from({ length: tokens }, (_, t) => recencyAt(t, tokens));
    assert.ok(Math.abs(all.reduce((sum, r) => sum + r, 0) / tokens) < 0.02);
    assert.ok(Math.abs(all.at(-1)! - (Math.log2(tokens) - 1 / Math.LN2)) < 1e-12);
  }
  const { coefficients, importance, deviations } = examples(3000, 5, 0.1);
  const recency = Float32Array.from({ length: 3000 }, (_, t) => recencyAt(t, 3000));
  const fading = {
    key: importance.key.map((w, t) => w * 2 ** (0.8 * recency[t]!)),
    value: importance.value.map((w, t) => w * 2 ** (0.8 * recency[t]!)),
  };
  // The last part of the examples measures R²: shuffle, or recency would tell it from the rest.
  const order = Array.from({ length: 3000 }, (_, i) => (i * 1009) % 3000);
  const turn = (values: Float32Array): Float32Array => {
    const width = values.length / 3000;
    return Float32Array.from(order.flatMap((t) => [...values.subarray(t * width, (t + 1) * width)]));
  };
  const turned = { tokens: 3000, key: turn(coefficients.key), value: turn(coefficients.value), recency: turn(recency) };
  const targets = { key: turn(fading.key), value: turn(fading.value) };
  const without = await fitTokenPredictor({ ...turned, recency: undefined }, targets, deviations, backend);
  const { predictor, r2 } = await fitTokenPredictor(turned, targets, deviations, backend);
  assert.ok(predictor.recency && !without.predictor.recency);
  assert.ok(r2.key > 0.98 && r2.key > without.r2.key + 0.1, `${r2.key} against ${without.r2.key}`);
  assert.ok(Math.abs(predictor.weights.key.at(-2)! - 0.8) < 0.02, `${predictor.weights.key.at(-2)}`);
  const still = { tokens: 1, key: new Float32Array(5), value: new Float32Array(6) };
  const classAt = (position: number): number =>
    predictTokenClasses(predictor, { ...still, recency: Float32Array.of(recencyAt(position, 3000)) }, 0.5).key[0]!;
  assert.ok(classAt(0) > classAt(2000) && classAt(2000) > classAt(2990));
  assert.ok(classAt(2999) <= -6, `${classAt(2999)}`);
});
