// Choosing a ratio by measured loss: pure cases, and a real profile measured and compressed with on a tiny model.

import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { TinyWorld } from '../../test/tiny-world.ts';
import { makeTinyWorld, prefilledState, tinyCalibration, tinyText } from '../../test/tiny-world.ts';
import { isKvtcError } from '../base/errors.ts';
import type { KvtcEvent } from '../base/events.ts';
import { calibrate } from './calibrate.ts';
import { memoryTarget } from '../container/target.ts';
import { measureQuality } from '../evaluation/measure-quality.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { QualityPoint } from '../profile/profile.ts';
import { openCoder } from './coder.ts';
import { inspect } from './inspect.ts';
import type { ChosenRatio } from './measured-ratio.ts';
import { chooseRatio } from './measured-ratio.ts';

function point(ratio: number, klNats: number, text = 'a'): QualityPoint {
  const ratios = { ratio, paperRatio: ratio, effectiveRatio: ratio };
  return { ...ratios, klNats, copyKlNats: null, top1Agreement: 1, weights: 'exact', text, tokens: 10 };
}
const quality = [point(8, 0.001), point(16, 0.004), point(16, 0.009, 'b'), point(32, 0.02), point(64, 0.01)];
const paper = { quality, codec: 'kvtc-paper' } as const;
const wtc = { quality, codec: 'wtc' } as const;

describe('chooseRatio', () => {
  it('takes the highest ratio whose worst measurement stays under the limit', () => {
    const chosen = (maxKlNats: number) => chooseRatio(paper, { maxKlNats });
    assert.deepEqual(chosen(0.0089), { ratio: 8, measuredKlNats: 0.001 });
    assert.deepEqual(chosen(0.009), { ratio: 16, measuredKlNats: 0.009 });
    assert.deepEqual(chosen(0.019), { ratio: 64, measuredKlNats: 0.01 });
    assert.deepEqual(chosen(9), { ratio: 64, measuredKlNats: 0.01 });
  });

  it('says so when nothing measured stays under the limit, or nothing was measured', () => {
    for (const given of [paper, wtc, { ...paper, quality: [] }, { ...wtc, quality: [] }]) {
      assert.throws(
        () => chooseRatio(given, { maxKlNats: 0.0001 }),
        (error) => isKvtcError(error, 'KVTC_QUALITY_UNKNOWN'),
      );
    }
  });

  it('refuses a limit beside a ratio, and limits that are none', () => {
    for (const options of [
      { maxKlNats: 0.1, ratio: 8 },
      { maxKlNats: 0.1, keyRatio: 8 },
      { maxKlNats: 0.1, valueRatio: 8 },
      { maxKlNats: 0.1, step: 1 },
      { maxKlNats: 0 },
      { maxKlNats: Number.NaN },
    ]) {
      assert.throws(
        () => chooseRatio(paper, options),
        (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'),
      );
    }
  });

  it('warns of a ratio that nobody has measured, and of no other', () => {
    const events: KvtcEvent[] = [];
    const onEvent = (event: KvtcEvent): void => void events.push(event);
    assert.deepEqual(chooseRatio(paper, { ratio: 32, onEvent }), { ratio: 32, measuredKlNats: 0.02 });
    assert.deepEqual(chooseRatio(paper, { onEvent }), { ratio: 16, measuredKlNats: 0.009 });
    assert.equal(chooseRatio(paper, { keyRatio: 8, onEvent }), null);
    assert.equal(chooseRatio(paper, { step: 1, onEvent }), null);
    assert.deepEqual(events, []);
    assert.deepEqual(chooseRatio(paper, { ratio: 12, onEvent }), { ratio: 12, measuredKlNats: null });
    assert.deepEqual(
      events.map(({ type }) => type),
      ['warning'],
    );
  });

  it('reads wtc between measured ratios, text by text, and never beyond what every text was measured at', () => {
    const near = (chosen: ChosenRatio | null, ratio: number, klNats: number): void => {
      assert.ok(chosen !== null && chosen.measuredKlNats !== null && chosen.interpolated === true);
      assert.ok(Math.abs(chosen.ratio / ratio - 1) < 1e-9, `${chosen.ratio}`);
      assert.ok(Math.abs(chosen.measuredKlNats / klNats - 1) < 1e-9, `${chosen.measuredKlNats}`);
    };
    // Text a alone: 8x 0.001, 16x 0.004, 32x 0.02.
    const one = { ...wtc, quality: quality.slice(0, 4).filter(({ text }) => text === 'a') };
    near(chooseRatio(one, { maxKlNats: 0.002 }), Math.sqrt(8 * 16), 0.002);
    assert.deepEqual(chooseRatio(one, { maxKlNats: 0.004 }), { ratio: 16, measuredKlNats: 0.004 });
    assert.deepEqual(chooseRatio(one, { maxKlNats: 5 }), { ratio: 32, measuredKlNats: 0.02 });
    // Text b was measured at 16x alone: nothing is known of it above.
    assert.deepEqual(chooseRatio(wtc, { maxKlNats: 0.01 }), { ratio: 16, measuredKlNats: 0.009 });
    assert.throws(
      () => chooseRatio(wtc, { maxKlNats: 0.008 }),
      (error) => isKvtcError(error, 'KVTC_QUALITY_UNKNOWN'),
    );
  });

  it('warns of a ratio of wtc beyond measured ones, not of one between them', () => {
    const events: KvtcEvent[] = [];
    const onEvent = (event: KvtcEvent): void => void events.push(event);
    const between = chooseRatio(wtc, { ratio: 24, onEvent });
    assert.ok((between?.measuredKlNats ?? 0) > 0.004 && (between?.measuredKlNats ?? 9) < 0.02);
    assert.equal(between?.interpolated, true);
    assert.deepEqual(chooseRatio(wtc, { ratio: 16, onEvent }), { ratio: 16, measuredKlNats: 0.009 });
    assert.deepEqual(events, []);
    for (const ratio of [7, 65]) {
      assert.deepEqual(chooseRatio(wtc, { ratio, onEvent }), { ratio, measuredKlNats: null });
    }
    assert.equal(events.length, 2);
  });
});

describe('a measured profile', () => {
  let world: TinyWorld;
  before(async () => {
    world = await makeTinyWorld('llama');
  });
  after(() => rm(world.directory, { recursive: true, force: true }));

  const measure = (profilePath: string, seed: number, kind: string, ratios?: readonly number[]) =>
    measureQuality({
      modelPath: world.modelPath,
      profilePath,
      texts: [{ kind, source: 's', text: tinyText(700, seed) }],
      ratios,
      prefixTokens: 384,
      continuationTokens: 64,
      copyTokens: 64,
      documents: 1,
      threads: 1,
      cacheDirectory: join(world.directory, 'cache'),
    });

  it('of wtc has a table of steps, and is read between them', async () => {
    const path = join(world.directory, 'wtc.profile.safetensors');
    await calibrate({ ...tinyCalibration(world.modelPath, path), codec: 'wtc', sensitivity: 'none' });
    const { points } = await measure(path, 60, 'mine');
    const profile = await openProfile(path);
    assert.deepEqual(profile.quality, points);
    const ratios = points.map(({ ratio }) => ratio);
    assert.deepEqual(ratios, [8, 12, 16, 24, 32, 48, 64, 96, 128].slice(0, ratios.length));
    assert.ok(ratios.length >= 4);
    const steps = points.map(({ step }) => step ?? 0);
    assert.ok(
      steps.every((step, i) => step > (steps[i - 1] ?? 0)),
      `${steps.join(' ')}`,
    );
    const [first, , third] = points;
    assert.ok(first !== undefined && third !== undefined && first.klNats < third.klNats);
    const { state } = await prefilledState(world.modelPath, 300);
    const coder = await openCoder(profile, { threads: 1 });
    try {
      const limit = Math.sqrt(first.klNats * third.klNats);
      const { chosen, storedBytes } = await coder.compress(state, memoryTarget(), { maxKlNats: limit });
      assert.ok(chosen !== null && chosen.ratio > first.ratio && chosen.ratio < third.ratio, `${chosen?.ratio}`);
      const byStep = await coder.compress(state, memoryTarget(), { step: steps[0] });
      const byRatio = await coder.compress(state, memoryTarget(), { ratio: first.ratio });
      assert.equal(byStep.storedBytes, byRatio.storedBytes, 'the step is the one the ratio was coded with');
      assert.ok(storedBytes < byRatio.storedBytes);
      await assert.rejects(coder.compress(state, memoryTarget(), { maxKlNats: first.klNats / 1e6 }), (error) =>
        isKvtcError(error, 'KVTC_QUALITY_UNKNOWN'),
      );
    } finally {
      await coder.close();
      await profile.close();
    }
  });

  it('holds what its ratios cost, keeps its id, and is compressed with by that', async () => {
    const earlier = await openProfile(world.profilePath);
    await earlier.close();
    const { points, evaluation } = await measure(world.profilePath, 60, 'mine');
    assert.deepEqual(
      points.map(({ ratio }) => ratio),
      [2, 4, 8],
    );
    assert.deepEqual(
      points.map(({ klNats }) => klNats),
      evaluation.rows.map(({ klNats }) => klNats),
    );
    await measure(world.profilePath, 61, 'other', [8]);
    await measure(world.profilePath, 60, 'mine', [4]);
    const profile = await openProfile(world.profilePath);
    assert.equal(profile.id, earlier.id);
    assert.deepEqual(
      profile.quality.map(({ ratio, text }) => `${ratio} ${text}`),
      ['2 1 document of mine', '4 1 document of mine', '8 1 document of mine', '8 1 document of other'].toSorted(),
    );
    const found = await inspect(world.profilePath);
    assert.deepEqual(found.kind === 'profile' && found.quality, profile.quality);

    const [, four, eight] = points;
    assert.ok(four !== undefined && eight !== undefined && four.klNats < eight.klNats);
    const { state } = await prefilledState(world.modelPath, 300);
    const coder = await openCoder(profile, { threads: 1 });
    try {
      const events: KvtcEvent[] = [];
      const onEvent = (event: KvtcEvent): void => void (event.type === 'warning' && events.push(event));
      const limit = (four.klNats + eight.klNats) / 2;
      const byLimit = await coder.compress(state, memoryTarget(), { maxKlNats: limit, onEvent });
      const byRatio = await coder.compress(state, memoryTarget(), { ratio: 4, onEvent });
      assert.deepEqual(byLimit.chosen, { ratio: 4, measuredKlNats: four.klNats });
      assert.equal(byLimit.storedBytes, byRatio.storedBytes);
      assert.deepEqual(events, []);
    } finally {
      await coder.close();
      await profile.close();
    }
  });
});
