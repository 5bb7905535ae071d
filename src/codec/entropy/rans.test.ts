import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { PlainStep } from './plain-lane.test-data.ts';
import { writePlainLane } from './plain-lane.test-data.ts';
import {
  LOWER_BOUND,
  PROBABILITY_SCALE,
  areFrequencies,
  checkLaneEnd,
  fillEncoder,
  fillSlots,
  quantiseFrequencies,
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
  it('divide every state that may be coded exactly', () => {
    const random = seededRandom(8);
    const view = new DataView(new ArrayBuffer(32));
    for (let f = 1; f <= PROBABILITY_SCALE; f++) {
      fillEncoder([PROBABILITY_SCALE - f, f], view, 0);
      assert.deepEqual(
        [view.getUint32(24, true), view.getUint16(28, true), view.getUint16(30, true)],
        [f * 2 ** 19, PROBABILITY_SCALE - f, PROBABILITY_SCALE - f],
      );
      const reciprocal = view.getBigUint64(16, true);
      const limit = f * 2 ** 19;
      for (const state of [
        limit - 1,
        limit - f,
        limit - f - 1,
        f,
        f - 1,
        random.below(limit),
        f * random.below(2 ** 19),
      ]) {
        assert.equal(Number((BigInt(state) * reciprocal) >> 43n), Math.floor(state / f), `${state} / ${f}`);
      }
      assert.ok(BigInt(limit - 1) * reciprocal < 1n << 63n);
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
    const frequencies = [3072, 768, 256];
    const coded = (symbol: number): PlainStep => ({ symbol, frequencies });
    const steps = [...[0, 1, 0, 2].map(coded), { raw: 19, bits: 5 }, ...[0, 1, 2, 2].map(coded)];
    assert.deepEqual(writePlainLane(steps), expected);
  });

  it('costs what the tables say, and decoding slots lead back to the start', () => {
    const counts = Float64Array.of(700, 200, 60, 30, 9, 1);
    const frequencies = [...quantiseFrequencies(counts)];
    const random = seededRandom(21);
    const symbols = Array.from({ length: 5000 }, () => {
      let mark = random.uniform() * 1000;
      let symbol = 0;
      while (mark >= counts[symbol]!) mark -= counts[symbol++]!;
      return symbol;
    });
    const words = writePlainLane(symbols.map((symbol) => ({ symbol, frequencies })));
    const bits = symbols.reduce((sum, symbol) => sum + 12 - Math.log2(frequencies[symbol]!), 0);
    assert.ok(Math.abs((words.length * 16 - 24) / bits - 1) < 3e-3, `${words.length * 16} bits for ${bits}`);

    const slots = new Int32Array(PROBABILITY_SCALE);
    fillSlots(frequencies, slots, 0);
    let x = words[0]! * 65536 + words[1]!;
    let position = 2;
    for (const symbol of symbols) {
      const slot = slots[x % 4096]!;
      assert.equal(slot >>> 25, symbol);
      x = ((slot >>> 12) & 8191) * (x >>> 12) + (slot & 4095);
      if (x < LOWER_BOUND) x = x * 65536 + words[position++]!;
    }
    checkLaneEnd(0, x, position, words.length);
    for (const [state, read] of [
      [x + 1, position],
      [x, position - 1],
    ] as const) {
      assert.throws(
        () => checkLaneEnd(0, state, read, words.length),
        (error) => isKvtcError(error, 'KVTC_CHUNK_MALFORMED'),
      );
    }
  });
});
