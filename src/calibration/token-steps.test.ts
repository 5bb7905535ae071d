import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { openReferenceBackend } from '../linalg/reference.ts';
import { fitTokenPredictor, predictTokenClasses } from './token-steps.ts';

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
