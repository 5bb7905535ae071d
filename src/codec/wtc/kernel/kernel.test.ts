import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { seededRandom } from '../../../base/random.ts';
import type { PlainStep } from '../../entropy/plain-lane.test-data.ts';
import { writePlainLane } from '../../entropy/plain-lane.test-data.ts';
import { rawStep } from '../../entropy/rans.ts';
import { fillRoom, placeExpected, planRoom } from '../chunk-room.ts';
import { codedPairs, tokenStep } from '../classes.ts';
import { laplaceRows, testTables } from '../fixture.test-data.ts';
import { createWtcPlan } from '../plan.ts';
import { DECISION_UNITS, STEPS_PER_PAIR, createTokenSteps, symboliseToken } from '../symbolise.ts';
import { ENTRY_STRIDE, TABLES, symbolCount } from '../symbols.ts';
import { assembleModule } from './assemble.ts';
import { kernelOf } from './kernel.ts';
import { CHUNK, ENCODER, LANE, LANES } from './layout.ts';

const RANK = 128;
const tables = testTables(RANK);

describe('the kernel', () => {
  it('chooses the steps that the plain walk chooses, outliers and all', () => {
    const random = seededRandom(50);
    for (let run = 0; run < 300; run++) {
      const stepIndex = random.below(4500) - 3000;
      const tokenClass = random.below(16) - 8;
      const plan = createWtcPlan({ stepIndex, rank: RANK, cut: random.below(12) - 10 }, tables);
      const coefficients = laplaceRows(1, RANK, run);
      if (run % 3 === 0) coefficients[random.below(RANK)] = (random.uniform() - 0.5) * 10 ** random.below(38);
      const token = createTokenSteps(RANK);
      const step = tokenStep(stepIndex, tokenClass);
      symboliseToken(coefficients, 0, tokenClass, step, plan, token);

      const kernel = kernelOf(plan.family);
      const room = planRoom(plan, [4 * RANK, 2 * STEPS_PER_PAIR * RANK]);
      const [rowAt, stepsAt] = room.parts as [number, number];
      const memory = kernel.reserve(room.roomBytes);
      fillRoom(memory, room, plan);
      new Float32Array(memory.buffer, rowAt, RANK).set(coefficients);
      const end = kernel.run.symbolise(
        rowAt,
        codedPairs(plan.pairClasses, tokenClass, plan.cut),
        DECISION_UNITS / step,
        2 * tokenClass,
        placeExpected(memory, room, plan, tokenClass, new Set()),
        room.pairClasses,
        room.runEnds,
        room.componentClasses,
        stepsAt,
      );
      const got = [...new Int32Array(memory.buffer, stepsAt, (end - stepsAt) / 4)];
      assert.deepEqual(got, [...token.steps.subarray(0, token.stepCount)], `run ${run}`);
    }
  });

  it('writes the words of the plain coder', () => {
    const kernel = kernelOf(tables.family);
    const random = seededRandom(51);
    for (let run = 0; run < 100; run++) {
      const plain: PlainStep[] = [];
      const steps = Array.from({ length: 1 + random.below(200) }, () => {
        if (random.below(6) === 0) {
          const bits = 1 + random.below(15);
          const raw = random.below(2 ** bits);
          plain.push({ raw, bits });
          return rawStep(raw, bits);
        }
        const table = random.below(TABLES);
        const symbol = random.below(symbolCount(table));
        const first = table * ENTRY_STRIDE;
        plain.push({ symbol, frequencies: [...tables.family.frequencies.subarray(first, first + ENTRY_STRIDE)] });
        return first + symbol;
      });
      const memory = kernel.reserve(4096);
      new Int32Array(memory.buffer, CHUNK, steps.length).set(steps);
      const view = new DataView(memory.buffer);
      view.setInt32(LANES + LANE.state, 32768, true);
      view.setInt32(LANES + LANE.position, CHUNK + 4096, true);
      kernel.run.write(LANES, CHUNK, CHUNK + 4 * steps.length, ENCODER);
      const [high, low, ...words] = writePlainLane(plain) as [number, number, ...number[]];
      const at = view.getInt32(LANES + LANE.position, true);
      assert.equal(view.getInt32(LANES + LANE.state, true), high * 65536 + low);
      assert.deepEqual([...new Uint16Array(memory.buffer, at, (CHUNK + 4096 - at) / 2)], words);
    }
  });

  it('keeps its tables when its memory grows', () => {
    const kernel = kernelOf(tables.family);
    const before = kernel.reserve(0).slice(0, CHUNK);
    const after = kernel.reserve(10_000_000);
    assert.ok(after.length >= CHUNK + 10_000_000);
    assert.deepEqual(after.slice(0, LANES), before.slice(0, LANES));
  });
});

describe('the assembler', () => {
  it('refuses what it does not know', () => {
    for (const text of [
      '(func $a (i32.rotl (i32.const 1) (i32.const 2)))',
      '(func $a (drop (local.get $b)))',
      '(func $a (call $b))',
      '(func $a (br $b))',
      '(func $a (param $x i31))',
      '(func $a (i32.const 1)',
    ]) {
      assert.throws(() => assembleModule(text), /kernel text/, text);
    }
  });
});
