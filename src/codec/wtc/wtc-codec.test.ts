import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { scaleIndices, stepIndexOf, tokenStep } from './classes.ts';
import { estimateBits } from './estimate.ts';
import { laplaceRows, testTables } from './fixture.test-data.ts';
import { createWtcPlan, rankNeeded } from './plan.ts';
import type { WtcPlan } from './plan.ts';
import { createTokenSteps, reconstruct, symboliseToken } from './symbolise.ts';
import { decodeWtcChunk, encodeWtcChunk } from './wtc-codec.ts';

const RANK = 128;
const tables = testTables(RANK);

function planFor(step: number, cut = -5, rank = RANK): WtcPlan {
  return createWtcPlan({ stepIndex: stepIndexOf(step), rank, cut }, tables);
}

/** What decoding must give, straight from the encoder's integers; NaN where a token codes nothing. */
function rebuilt(coefficients: Float32Array, tokenClasses: Int8Array, plan: WtcPlan): Float32Array {
  const out = new Float32Array(tokenClasses.length * plan.rank).fill(NaN);
  const token = createTokenSteps(plan.rank);
  tokenClasses.forEach((tokenClass, t) => {
    const step = tokenStep(plan.stepIndex, tokenClass);
    symboliseToken(coefficients, t * plan.rank, tokenClass, step, plan, token);
    for (let i = 0; i < token.componentCount; i++) {
      const value = reconstruct(token.integers[i]!, plan.family.centroids, token.rows[i]!);
      out[t * plan.rank + i] = value * step;
    }
  });
  return out;
}

const malformed = (error: unknown): boolean => isKvtcError(error, 'KVTC_CHUNK_MALFORMED');

describe('a wtc chunk', () => {
  it('decodes to the integers that were chosen, at every step, token class and token count', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 70 }),
        fc.double({ min: -9, max: 6, noNaN: true }),
        fc.integer({ min: -8, max: 7 }),
        fc.integer({ min: -8, max: 4 }),
        fc.integer(),
        (tokenCount, octave, tokenClass, cut, seed) => {
          const plan = planFor(2 ** octave, cut);
          const coefficients = laplaceRows(tokenCount, RANK, seed);
          const random = seededRandom(seed + 1);
          const classes = Int8Array.from({ length: tokenCount }, (_, t) =>
            t % 3 === 0 ? tokenClass : random.below(16) - 8,
          );
          const bytes = encodeWtcChunk(coefficients, tokenCount, classes, plan);
          const out = new Float32Array(tokenCount * RANK).fill(NaN);
          assert.deepEqual(decodeWtcChunk(bytes, tokenCount, plan, out), classes);
          assert.deepEqual(out, rebuilt(coefficients, classes, plan));
        },
      ),
      { numRuns: 150 },
    );
  });

  it('keeps the error of a fine step within the thresholds', () => {
    const plan = planFor(0.01, -10);
    const coefficients = laplaceRows(40, RANK, 5);
    const out = new Float32Array(coefficients.length);
    decodeWtcChunk(encodeWtcChunk(coefficients, 40, new Int8Array(40), plan), 40, plan, out);
    let worst = 0;
    coefficients.forEach((value, i) => (worst = Math.max(worst, Math.abs(value - out[i]!))));
    assert.ok(worst > 0 && worst < 1.3 * plan.step, `worst error ${worst / plan.step} steps`);
  });

  it('holds values far beyond σ, up to where magnitudes saturate', () => {
    const plan = planFor(1);
    for (const value of [25, -26, 1000, -65_000, 1e6, -1e9, 3e38]) {
      const coefficients = new Float32Array(RANK);
      coefficients[0] = value;
      coefficients[90] = value;
      const out = new Float32Array(RANK);
      decodeWtcChunk(encodeWtcChunk(coefficients, 1, new Int8Array(1), plan), 1, plan, out);
      if (Math.abs(value) <= 65_000) {
        assert.ok(Math.abs(out[90]! - value) <= 1, `${value} came back as ${out[90]}`);
      } else {
        assert.ok(Math.abs(out[90]!) > 65_000 && Math.sign(out[90]!) === Math.sign(value), `${value}: ${out[90]}`);
      }
    }
  });

  it('codes nothing but token classes when all components lie under the cut', () => {
    const plan = planFor(1e6);
    const bytes = encodeWtcChunk(laplaceRows(16, RANK, 3), 16, new Int8Array(16), plan);
    assert.equal(bytes.length, 9 + 1 + 4);
    const out = new Float32Array(16 * RANK).fill(NaN);
    decodeWtcChunk(bytes, 16, plan, out);
    assert.ok(out.every(Number.isNaN));
  });

  it('is the same bytes for the same tokens', () => {
    const plan = planFor(0.5);
    const coefficients = laplaceRows(50, RANK, 9);
    const classes = Int8Array.from({ length: 50 }, (_, t) => (t % 5) - 2);
    assert.deepEqual(
      encodeWtcChunk(coefficients, 50, classes, plan),
      encodeWtcChunk(coefficients.slice(), 50, classes.slice(), planFor(0.5)),
    );
  });

  it('takes rows that end before the rank of the plan as ones with zeros there', () => {
    const plan = planFor(0.5);
    const [tokens, rank] = [50, RANK / 2];
    const whole = laplaceRows(tokens, RANK, 9);
    const narrow = new Float32Array(tokens * rank);
    for (let t = 0; t < tokens; t++) {
      whole.fill(0, t * RANK + rank, (t + 1) * RANK);
      narrow.set(whole.subarray(t * RANK, t * RANK + rank), t * rank);
    }
    const classes = Int8Array.from({ length: tokens }, (_, t) => (t % 5) - 2);
    // Leaves other values where the zeros belong.
    encodeWtcChunk(laplaceRows(tokens, RANK, 1), tokens, classes, plan);
    assert.deepEqual(encodeWtcChunk(narrow, tokens, classes, plan, rank), encodeWtcChunk(whole, tokens, classes, plan));
    narrow[7 * rank + 3] = NaN;
    assert.throws(
      () => encodeWtcChunk(narrow, tokens, classes, plan, rank),
      /coefficient 3 of the chunk's token 7 is NaN/u,
    );
  });

  it('costs what the estimate says', () => {
    for (const step of [0.1, 0.5, 2]) {
      const plan = planFor(step);
      const coefficients = laplaceRows(256, RANK, 11);
      const classes = Int8Array.from({ length: 256 }, (_, t) => (t % 4) - 2);
      const bits = 8 * encodeWtcChunk(coefficients, 256, classes, plan).length;
      const { codedBits, idealBits, totalBits } = estimateBits(coefficients, 256, classes, plan);
      assert.ok(Math.abs(totalBits / bits - 1) < 0.01, `estimated ${totalBits}, coded ${bits}`);
      assert.ok(idealBits < codedBits && codedBits < 1.1 * idealBits, `ideal ${idealBits}, by tables ${codedBits}`);
    }
  });

  it('spends fewer bits on a larger step', () => {
    const coefficients = laplaceRows(64, RANK, 12);
    const lengths = [0.05, 0.2, 0.8, 3.2].map(
      (step) => encodeWtcChunk(coefficients, 64, new Int8Array(64), planFor(step)).length,
    );
    assert.deepEqual(
      lengths,
      lengths.toSorted((a, b) => b - a),
    );
  });

  it('refuses coefficients that are not finite, by token and component', () => {
    for (const value of [NaN, Infinity, -Infinity]) {
      const coefficients = laplaceRows(3, RANK, 1);
      coefficients[2 * RANK + 7] = value;
      assert.throws(
        () => encodeWtcChunk(coefficients, 3, new Int8Array(3), planFor(1)),
        (error) =>
          isKvtcError(error, 'KVTC_ROWS_NOT_FINITE') &&
          error.details['token'] === 2 &&
          error.details['component'] === 7,
      );
    }
  });
});

describe('a damaged wtc chunk', () => {
  const plan = planFor(0.3);
  const coefficients = laplaceRows(40, RANK, 2);
  const bytes = encodeWtcChunk(coefficients, 40, new Int8Array(40), plan);
  const decode = (damaged: Uint8Array, tokens = 40): Int8Array =>
    decodeWtcChunk(damaged, tokens, plan, new Float32Array(tokens * RANK));

  it('is refused when cut short or extended anywhere', () => {
    for (let length = 0; length < bytes.length; length += length < 40 ? 1 : 97) {
      assert.throws(() => decode(bytes.subarray(0, length)), malformed, `cut to ${length}`);
    }
    assert.throws(() => decode(Uint8Array.from([...bytes, 0])), malformed);
    assert.throws(() => decode(Uint8Array.from([...bytes, 0, 0])), malformed);
  });

  it('is refused for wrong lane counts, token class weights and lane lengths', () => {
    const changed = (at: number, ...values: number[]): Uint8Array => {
      const copy = bytes.slice();
      copy.set(values, at);
      return copy;
    };
    assert.equal(bytes[0], 3);
    for (const lanes of [0, 2, 4, 41, 65, 255]) assert.throws(() => decode(changed(0, lanes)), malformed);
    assert.throws(() => decode(changed(1, 0, 0, 0, 0, 0, 0, 0, 0)), malformed);
    assert.throws(() => decode(changed(9, 255, 255, 255, 255)), malformed);
    assert.throws(() => decode(changed(9, 1)), malformed);
    assert.throws(() => decode(changed(9, 0x80, 0)), malformed);
    assert.throws(() => decode(bytes, 39), malformed);
  });

  it('ends within bounds for any bytes: refused, or finite values', () => {
    const random = seededRandom(77);
    let refused = 0;
    for (let run = 0; run < 400; run++) {
      const copy = bytes.slice();
      for (let n = 1 + random.below(4); n > 0; n--) copy[random.below(copy.length)] = random.below(256);
      const out = new Float32Array(40 * RANK);
      try {
        decodeWtcChunk(copy, 40, plan, out);
        assert.ok(out.every((value) => Number.isFinite(value)));
      } catch (error) {
        assert.ok(malformed(error), String(error));
        refused++;
      }
    }
    assert.ok(refused > 380, `${refused} of 400 damaged chunks were noticed by the coder's own checks`);
  });
});

describe('the rank a step needs', () => {
  it('grows as the step shrinks and with finer token classes', () => {
    const scales = scaleIndices(Float32Array.from({ length: 100 }, (_, i) => 8 / (1 + i)));
    const ranks = [4, 1, 0.25, 0.01].map((step) => rankNeeded(scales, stepIndexOf(step)));
    assert.deepEqual(ranks, [16, 32, 96, 96]);
    assert.ok(rankNeeded(scales, 0, -5, -2) > rankNeeded(scales, 0, -5, 0));
    assert.equal(rankNeeded(scales, 0, -5, 7), 16);
  });
});
