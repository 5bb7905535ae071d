import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import {
  LOWER_BOUND,
  PROBABILITY_SCALE,
  areFrequencies,
  checkLaneEnd,
  closeLane,
  createEncoderTables,
  fillEncoder,
  fillSlots,
  openLane,
  quantiseFrequencies,
  rawStep,
  writeSteps,
} from './rans.ts';

describe('quantised frequencies', () => {
  it('sum to 4096 without a zero, whatever the counts', () => {
    const random = seededRandom(3);
    for (let run = 0; run < 200; run++) {
      const counts = Float64Array.from({ length: 2 + random.below(126) }, () =>
        Math.floor(random.uniform() ** 9 * 1e6),
      );
      counts[random.below(counts.length)] = 1e6;
      assert.ok(areFrequencies(quantiseFrequencies(counts)));
    }
  });

  it('are in proportion, with at least one for what never occurred', () => {
    assert.deepEqual([...quantiseFrequencies(Float64Array.of(3, 1))], [3072, 1024]);
    assert.deepEqual([...quantiseFrequencies(Float64Array.of(1, 0, 0))], [4094, 1, 1]);
    assert.deepEqual([...quantiseFrequencies(Float64Array.of(5))], [4096]);
  });

  it('lose less than 0.1 % against the counts themselves', () => {
    const counts = Float64Array.from({ length: 50 }, (_, i) => 1e5 * Math.exp(-Math.abs(i - 25) / 3));
    const frequencies = quantiseFrequencies(counts);
    const total = counts.reduce((a, b) => a + b);
    let ideal = 0;
    let coded = 0;
    counts.forEach((count, s) => {
      ideal += count * Math.log2(total / count);
      coded += count * (12 - Math.log2(frequencies[s]!));
    });
    assert.ok(coded >= ideal && coded < ideal * 1.001, `${coded / ideal}`);
  });

  it('are told from what is none', () => {
    for (const bad of [[4095], [4097], [2048, 2048.5], [4096, 0], [-1, 4097], [NaN], []]) {
      assert.equal(areFrequencies(bad), false, String(bad));
    }
  });
});

describe('the encoder constants', () => {
  it('divide every state exactly', () => {
    const random = seededRandom(8);
    for (let f = 1; f <= PROBABILITY_SCALE; f++) {
      const tables = createEncoderTables(1);
      fillEncoder([f], tables, 0);
      const reciprocal = tables.reciprocal[0]!;
      const highest = Math.floor((2 ** 31 - 1) / f) * f;
      for (const state of [highest, highest - 1, highest - f, random.below(2 ** 31), f * random.below(1000)]) {
        assert.equal((state * reciprocal) | 0, Math.floor(state / f), `${state} / ${f}`);
      }
    }
  });
});

describe('a lane', () => {
  it('is the words of the worked example of docs/format/entropy.md', async () => {
    const page = await readFile(new URL('../../../docs/format/entropy.md', import.meta.url), 'utf8');
    const expected = /```words\n(.*)\n```/
      .exec(page)?.[1]
      ?.split(' ')
      .map((word) => parseInt(word, 16));
    const tables = createEncoderTables(3);
    fillEncoder([3072, 768, 256], tables, 0);
    const writer = openLane(new Uint16Array(16));
    writeSteps(writer, Int32Array.of(0, 1, 0, 2, rawStep(19, 5), 0, 1, 2, 2), 9, tables);
    assert.deepEqual([...closeLane(writer)], expected);
  });

  it('costs what the tables say and its decoder comes back to the start', () => {
    const counts = Float64Array.of(700, 200, 60, 30, 9, 1);
    const frequencies = quantiseFrequencies(counts);
    const tables = createEncoderTables(6);
    fillEncoder(frequencies, tables, 0);
    const random = seededRandom(21);
    const steps = Int32Array.from({ length: 50_000 }, () => {
      let mark = random.uniform() * 1000;
      let symbol = 0;
      while (mark >= counts[symbol]!) mark -= counts[symbol++]!;
      return symbol;
    });
    const writer = openLane(new Uint16Array(steps.length + 2));
    writeSteps(writer, steps, steps.length, tables);
    const words = closeLane(writer);
    const bits = steps.reduce((sum, symbol) => sum + 12 - Math.log2(frequencies[symbol]!), 0);
    assert.ok(Math.abs((words.length * 16 - 24) / bits - 1) < 2e-4, `${words.length * 16} bits for ${bits}`);

    const slots = new Int32Array(PROBABILITY_SCALE);
    fillSlots(frequencies, slots, 0);
    let x = words[0]! * 65536 + words[1]!;
    let position = 2;
    for (const symbol of steps) {
      const slot = slots[x % 4096]!;
      assert.equal(slot >>> 25, symbol);
      x = ((slot >>> 12) & 8191) * (x >>> 12) + (slot & 4095);
      if (x < LOWER_BOUND) x = x * 65536 + words[position++]!;
    }
    checkLaneEnd(0, x, position, words.length);
    assert.throws(
      () => checkLaneEnd(0, x + 1, position, words.length),
      (error) => isKvtcError(error, 'KVTC_CHUNK_MALFORMED'),
    );
    assert.throws(
      () => checkLaneEnd(0, x, position - 1, words.length),
      (error) => isKvtcError(error, 'KVTC_CHUNK_MALFORMED'),
    );
  });
});
