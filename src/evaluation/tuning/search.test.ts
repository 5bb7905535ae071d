import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TunedLoss, TunedSetting } from './search.ts';
import { EXPONENTS, searchSettings } from './search.ts';

/** Losses as bowls around an exponent and an offset of their own. */
const bowl =
  (exponent: number, offset: number) =>
  (setting: TunedSetting): number =>
    0.01 * (1 + (3 * (setting.exponent - exponent)) ** 2 + ((setting.valueOffset - offset) / 512) ** 2);

type TestLoss = Omit<TunedLoss, 'byDocument'> & Partial<Pick<TunedLoss, 'byDocument'>>;

async function search(
  start: TunedSetting,
  loss: (setting: TunedSetting) => TestLoss,
  exponents: readonly number[] = EXPONENTS,
) {
  const rounds: (readonly TunedSetting[])[] = [];
  const { tried, chosen } = await searchSettings(start, exponents, (settings) => {
    rounds.push(settings);
    return Promise.resolve(
      settings.map((setting) => {
        const { klNats, copyKlNats, byDocument } = loss(setting);
        return { klNats, copyKlNats, byDocument: byDocument ?? [{ klNats, copyKlNats }] };
      }),
    );
  });
  const best = tried[chosen];
  assert.ok(best !== undefined);
  return { best: [best.exponent, best.valueOffset], tried, chosen, rounds };
}

test('climbs to the best setting, measuring each once and the first alone with its neighbours', async () => {
  const both = bowl(0.15, 256);
  const { best, tried, rounds } = await search({ exponent: 0.3, valueOffset: -256 }, (setting) => ({
    klNats: both(setting),
    copyKlNats: 2 * both(setting),
  }));
  assert.deepEqual(best, [0.15, 256]);
  const names = tried.map(({ exponent, valueOffset }) => `${exponent} ${valueOffset}`);
  assert.equal(new Set(names).size, names.length);
  assert.deepEqual(
    rounds[0]?.map(({ exponent, valueOffset }) => [exponent, valueOffset]),
    [
      [0.3, -256],
      [0.3, -384],
      [0.3, -128],
      [0.15, -256],
      [0.45, -256],
    ],
  );
  assert.equal(rounds.flat().length, tried.length);
});

test('takes nothing that makes prediction or copying worse by more than a twentieth, whatever the other gains', async () => {
  const loss = ({ exponent }: TunedSetting): TestLoss => ({
    klNats: 0.01 * (1 - exponent),
    copyKlNats: 0.02 * (1 + 0.3 * (exponent - 0.15)),
  });
  const { best, tried } = await search({ exponent: 0.15, valueOffset: 0 }, loss);
  assert.deepEqual(best, [0.3, 0]);
  assert.ok(
    tried.some(({ exponent }) => exponent === 0.45),
    'it was looked at',
  );
});

test('stays where it is for gains that are noise, and where all losses are 0', async () => {
  const flat = await search({ exponent: 0.3, valueOffset: 64 }, ({ valueOffset }) => ({
    klNats: 0.01 - 1e-7 * valueOffset,
    copyKlNats: 0.02,
  }));
  assert.deepEqual([flat.best, flat.chosen], [[0.3, 64], 0]);
  const nothing = await search({ exponent: 0.3, valueOffset: 0 }, () => ({ klNats: 0, copyKlNats: 0 }));
  assert.equal(nothing.chosen, 0);
});

test('ends where losses are no numbers or only fall', async () => {
  const broken = await search({ exponent: 0, valueOffset: 0 }, () => ({ klNats: NaN, copyKlNats: NaN }));
  assert.equal(broken.chosen, 0);
  const falling = await search(
    { exponent: 0, valueOffset: 0 },
    ({ valueOffset }) => ({ klNats: 2 ** (-valueOffset / 256), copyKlNats: 1 }),
    [],
  );
  assert.deepEqual(falling.best, [0, 1024]);
  assert.ok(falling.tried.every(({ exponent }) => exponent === 0));
});

test('an exponent that is not on the list has neighbours on it', async () => {
  const { rounds } = await search({ exponent: 0.2, valueOffset: 0 }, () => ({ klNats: 1, copyKlNats: 1 }));
  assert.deepEqual(
    rounds[0]?.slice(3).map(({ exponent }) => exponent),
    [0.15, 0.3],
  );
});

test('a gain on some documents that others do not have is chance', async () => {
  const by = (...shares: readonly number[]) => ({
    klNats: 0.01 * (shares.reduce((sum, share) => sum + share, 0) / shares.length),
    copyKlNats: 0.01,
    byDocument: shares.map((share) => ({ klNats: 0.01 * share, copyKlNats: 0.01 * share })),
  });
  const uneven = await search({ exponent: 0.3, valueOffset: 0 }, ({ exponent }) =>
    exponent === 0.45 ? by(0.6, 1.15, 1.1) : by(1, 1, 1),
  );
  assert.equal(uneven.chosen, 0);
  const even = await search({ exponent: 0.3, valueOffset: 0 }, ({ exponent }) =>
    exponent === 0.45 ? by(0.93, 0.97, 0.95) : by(1, 1, 1),
  );
  assert.deepEqual(even.best, [0.45, 0]);
});
