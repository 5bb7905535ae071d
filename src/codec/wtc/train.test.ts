import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../../base/errors.ts';
import { scaleIndices, stepIndexOf } from './classes.ts';
import { estimateBits } from './estimate.ts';
import { CELLS, FAMILY_VALUES, packFamily, unpackFamily, unpackScales } from './family.ts';
import { laplaceRows, testDeviation, testTables } from './fixture.test-data.ts';
import { createWtcPlan, fileWtcParameters, parseWtcParameters } from './plan.ts';
import { ENTRY_STRIDE, SINGLE_TABLES, TABLES } from './symbols.ts';
import { trainTables } from './train.ts';

const RANK = 128;
const { scales, family } = testTables(RANK);

describe('trained tables', () => {
  it('come within 4 % of tables fitted to other tokens of the same source, at every step', () => {
    const coefficients = laplaceRows(600, RANK, 1234);
    for (const stepIndex of [-600, -300, 0, 200, 400]) {
      const plan = createWtcPlan({ stepIndex, rank: RANK, cut: -5 }, { scales, family });
      const { codedBits, idealBits } = estimateBits(coefficients, 600, new Int8Array(600), plan);
      assert.ok(codedBits / idealBits < 1.04, `step ${stepIndex}: ${codedBits / idealBits}`);
    }
  });

  it('need fewer bits than tables of another shape', () => {
    const uniform = laplaceRows(300, RANK, 8).map((value, i) => Math.sign(value) * testDeviation(i % RANK));
    const other = trainTables({ coefficients: uniform, tokenCount: 300, rank: RANK }, scales, [-256, 0, 256]);
    const coefficients = laplaceRows(100, RANK, 77);
    const bits = [family, other].map((one) => {
      const plan = createWtcPlan({ stepIndex: 0, rank: RANK, cut: -5 }, { scales, family: one });
      return estimateBits(coefficients, 100, new Int8Array(100), plan).codedBits;
    });
    assert.ok(bits[0]! < 0.95 * bits[1]!, bits.join(' '));
  });

  it('make the dead zone wider where ones are rarer', () => {
    const zero = (row: number): number => family.thresholds[row * CELLS]!;
    assert.ok(zero(3) > zero(8) && zero(8) > zero(13), `${zero(3)} ${zero(8)} ${zero(13)}`);
    assert.ok(zero(3) > 0.7 && zero(18) < 0.62);
  });

  it('take signs and the order within a pair as equally likely, within rounding', () => {
    for (let table = SINGLE_TABLES; table < TABLES; table++) {
      const reach = table - SINGLE_TABLES - 10 <= -2 ? 2 : 3;
      const side = 2 * reach + 1;
      const at = (a: number, b: number): number =>
        family.frequencies[table * ENTRY_STRIDE + side * (a + reach) + b + reach]!;
      for (const [a, b] of [
        [1, 0],
        [1, 1],
        [2, 1],
      ] as const) {
        for (const twin of [at(-a, b), at(a, -b), at(b, a)]) assert.ok(Math.abs(twin - at(a, b)) <= 2);
      }
    }
  });

  it('code values that training never saw', () => {
    const none = trainTables({ coefficients: new Float32Array(16), tokenCount: 1, rank: 16 }, scales, [0]);
    const plan = createWtcPlan({ stepIndex: 0, rank: RANK, cut: -5 }, { scales, family: none });
    const { codedBits, idealBits } = estimateBits(laplaceRows(200, RANK, 5), 200, new Int8Array(200), plan);
    assert.ok(codedBits / idealBits < 1.3, `${codedBits / idealBits}`);
  });
});

describe('a packed family', () => {
  it('comes back as it was', () => {
    assert.deepEqual(unpackFamily(packFamily(family), 'tables'), family);
  });

  it('is refused when any part of it cannot be', () => {
    const packed = packFamily(family);
    const changed = (index: number, value: number): Float32Array => {
      const copy = packed.slice();
      copy[index] = value;
      return copy;
    };
    const centroids = TABLES * ENTRY_STRIDE;
    const thresholds = centroids + SINGLE_TABLES * CELLS;
    const weights = thresholds + SINGLE_TABLES * CELLS;
    const damaged = [
      packed.subarray(1),
      new Float32Array(FAMILY_VALUES),
      changed(0, 0),
      changed(3, packed[3]! + 1),
      changed(50, 1),
      changed(20, NaN),
      changed(centroids, 0.6),
      changed(centroids + 1, NaN),
      changed(thresholds, 0.4),
      changed(thresholds + 1, 0.5),
      changed(thresholds + 2, NaN),
      changed(weights, 0.5),
      changed(weights + 1, -1),
      changed(FAMILY_VALUES - 1, 65),
    ];
    for (const [index, bad] of damaged.entries()) {
      assert.throws(
        () => unpackFamily(bad, 'tables'),
        (error) => isKvtcError(error, 'KVTC_PROFILE_MALFORMED'),
        `case ${index}`,
      );
    }
  });
});

describe('packed scales', () => {
  it('come back as they were, and are refused when not whole, too large or rising', () => {
    assert.deepEqual(unpackScales(Float32Array.from(scales), 'scales'), scales);
    for (const bad of [[1, 2], [0.5], [NaN], [16_385], [0, -16_385]]) {
      assert.throws(
        () => unpackScales(Float32Array.from(bad), 'scales'),
        (error) => isKvtcError(error, 'KVTC_PROFILE_MALFORMED'),
      );
    }
  });
});

describe('wtc parameters', () => {
  const stream = { stepIndex: -300, rank: 64, cut: -5 };

  it('come back from their JSON', () => {
    const parameters = { key: stream, value: { stepIndex: 17, rank: 32, cut: 3, expected: 16 } };
    assert.deepEqual(parseWtcParameters(JSON.parse(JSON.stringify(fileWtcParameters(parameters)))), parameters);
  });

  it('are refused when malformed', () => {
    const bad: unknown[] = [null, {}, { key: stream }, { key: stream, value: stream, more: 1 }];
    for (const change of [
      { rank: 8 },
      { rank: -16 },
      { rank: 1 << 21 },
      { cut: -11 },
      { cut: 0.5 },
      { stepIndex: 2e4 },
      { expected: 80 },
      { expected: 8 },
      { expected: -16 },
    ]) {
      bad.push({ key: { ...stream, ...change }, value: stream });
    }
    for (const json of bad) {
      assert.throws(
        () => parseWtcParameters(json),
        (error) => isKvtcError(error, 'KVTC_CONTAINER_MALFORMED'),
        JSON.stringify(json),
      );
    }
  });

  it('are refused for a profile of lower rank', () => {
    const few = scaleIndices(Float32Array.of(1, 1));
    assert.throws(
      () => createWtcPlan({ ...stream, stepIndex: stepIndexOf(1) }, { scales: few, family }),
      (error) => isKvtcError(error, 'KVTC_PROFILE_MISMATCH'),
    );
  });
});
