// Choosing a ratio by measured loss: pure cases, and a real profile measured and compressed with on a tiny model.

import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { TinyWorld } from '../../test/tiny-world.ts';
import { makeTinyWorld, prefilledState, tinyText } from '../../test/tiny-world.ts';
import { isKvtcError } from '../base/errors.ts';
import type { KvtcEvent } from '../base/events.ts';
import { memoryTarget } from '../container/target.ts';
import { measureQuality } from '../evaluation/measure-quality.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { QualityPoint } from '../profile/profile.ts';
import { openCoder } from './coder.ts';
import { inspect } from './inspect.ts';
import { chooseRatio } from './measured-ratio.ts';

function point(ratio: number, klNats: number, text = 'a'): QualityPoint {
  const ratios = { ratio, paperRatio: ratio, effectiveRatio: ratio };
  return { ...ratios, klNats, copyKlNats: null, top1Agreement: 1, weights: 'exact', text, tokens: 10 };
}
const quality = [point(8, 0.001), point(16, 0.004), point(16, 0.009, 'b'), point(32, 0.02), point(64, 0.01)];

describe('chooseRatio', () => {
  it('takes the highest ratio whose worst measurement stays under the limit', () => {
    const chosen = (maxKlNats: number) => chooseRatio({ quality }, { maxKlNats });
    assert.deepEqual(chosen(0.0089), { ratio: 8, measuredKlNats: 0.001 });
    assert.deepEqual(chosen(0.009), { ratio: 16, measuredKlNats: 0.009 });
    assert.deepEqual(chosen(0.019), { ratio: 64, measuredKlNats: 0.01 });
    assert.deepEqual(chosen(9), { ratio: 64, measuredKlNats: 0.01 });
  });

  it('says so when nothing measured stays under the limit, or nothing was measured', () => {
    for (const given of [{ quality }, { quality: [] }]) {
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
        () => chooseRatio({ quality }, options),
        (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'),
      );
    }
  });

  it('warns of a ratio that nobody has measured, and of no other', () => {
    const events: KvtcEvent[] = [];
    const onEvent = (event: KvtcEvent): void => void events.push(event);
    assert.deepEqual(chooseRatio({ quality }, { ratio: 32, onEvent }), { ratio: 32, measuredKlNats: 0.02 });
    assert.deepEqual(chooseRatio({ quality }, { onEvent }), { ratio: 16, measuredKlNats: 0.009 });
    assert.equal(chooseRatio({ quality }, { keyRatio: 8, onEvent }), null);
    assert.equal(chooseRatio({ quality }, { step: 1, onEvent }), null);
    assert.deepEqual(events, []);
    assert.deepEqual(chooseRatio({ quality }, { ratio: 12, onEvent }), { ratio: 12, measuredKlNats: null });
    assert.deepEqual(
      events.map(({ type }) => type),
      ['warning'],
    );
  });
});

describe('a measured profile', () => {
  let world: TinyWorld;
  before(async () => {
    world = await makeTinyWorld('llama');
  });
  after(() => rm(world.directory, { recursive: true, force: true }));

  it('holds what its ratios cost, keeps its id, and is compressed with by that', async () => {
    const earlier = await openProfile(world.profilePath);
    await earlier.close();
    const measure = (seed: number, kind: string, ratios?: readonly number[]) =>
      measureQuality({
        modelPath: world.modelPath,
        profilePath: world.profilePath,
        texts: [{ kind, source: 's', text: tinyText(700, seed) }],
        ratios,
        prefixTokens: 384,
        continuationTokens: 64,
        copyTokens: 64,
        documents: 1,
        threads: 1,
        cacheDirectory: join(world.directory, 'cache'),
      });
    const { points, evaluation } = await measure(60, 'mine');
    assert.deepEqual(
      points.map(({ ratio }) => ratio),
      [2, 4, 8],
    );
    assert.deepEqual(
      points.map(({ klNats }) => klNats),
      evaluation.rows.map(({ klNats }) => klNats),
    );
    await measure(61, 'other', [8]);
    await measure(60, 'mine', [4]);
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
