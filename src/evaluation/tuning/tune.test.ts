// Tuning on a tiny model with random weights, through the real engine, calibration and codec.

import assert from 'node:assert/strict';
import { copyFile, mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { writeTinyModel } from '../../../test/tiny-gguf.ts';
import { TINY_TEXTS, tinyCalibration, tinyText } from '../../../test/tiny-world.ts';
import { isKvtcError } from '../../base/errors.ts';
import type { KvtcEvent } from '../../base/events.ts';
import { calibrate } from '../../cache/calibrate.ts';
import { sampleDocuments } from '../../calibration/sample.ts';
import { openModel } from '../../engines/llama/session.ts';
import { openProfile } from '../../profile/open-profile.ts';
import type { QualityPoint, WtcProfile } from '../../profile/profile.ts';
import { rewriteProfile } from '../../profile/write-profile.ts';
import { stepForBytes } from './equal-bits.ts';
import type { TuneOptions, Tuning } from './tune.ts';
import { tuneProfile } from './tune.ts';
import { leftDocuments } from './tuning-documents.ts';

/** Two octaves: values are coded far too coarsely for what they take from keys. */
const BAD_OFFSET = 512;

const QUALITY: QualityPoint = {
  ratio: 8,
  step: 1,
  paperRatio: 8,
  effectiveRatio: 7,
  klNats: 0.01,
  copyKlNats: 0.02,
  top1Agreement: 0.9,
  weights: 'exact',
  text: 'measured before',
  tokens: 100,
};

let folder = '';
let modelPath = '';
let paperPath = '';
let goodPath = '';
let badPath = '';

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-tune-'));
  modelPath = join(folder, 'model.gguf');
  [paperPath, goodPath, badPath] = ['paper', 'good', 'bad'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await writeTinyModel(modelPath, 'llama');
  await calibrate(tinyCalibration(modelPath, paperPath));
  await calibrate({ ...tinyCalibration(modelPath, goodPath), codec: 'wtc', sensitivity: 'none' });
  await copyFile(goodPath, badPath);
  const { steps } = await opened(badPath);
  const moved = (by: number, { stepIndex, ...rest }: WtcProfile['steps'][number]['key']) => ({
    ...rest,
    stepIndex: stepIndex + by,
  });
  await rewriteProfile(badPath, {
    steps: steps.map(({ key, value, ...rest }) => ({
      ...rest,
      key: moved(-BAD_OFFSET / 2, key),
      value: moved(BAD_OFFSET / 2, value),
    })),
    quality: [QUALITY],
  });
});
after(() => rm(folder, { recursive: true, force: true }));

async function opened(path: string): Promise<WtcProfile> {
  const profile = await openProfile(path);
  await profile.close();
  assert.ok(profile.codec === 'wtc');
  return profile;
}

const tune = (profilePath: string, options: Partial<TuneOptions> = {}): Promise<Tuning> =>
  tuneProfile({
    modelPath,
    profilePath,
    texts: [{ name: 'new', texts: [{ source: 'new', text: tinyText(400, 77) }] }],
    documents: 1,
    prefixTokens: 384,
    continuationTokens: 128,
    ratio: 8,
    cacheDirectory: join(folder, 'cache'),
    threads: 1,
    ...options,
  });

/** A copy of a profile, to be changed. */
async function copyOf(path: string, name: string): Promise<string> {
  const copy = join(folder, name);
  await copyFile(path, copy);
  return copy;
}

const offsetsOf = ({ steps }: WtcProfile): number[] => [
  ...new Set(steps.map(({ key, value }) => value.stepIndex - key.stepIndex)),
];

test('a bad proportion of the steps is repaired, at equal size, and the file says how', async () => {
  const path = await copyOf(badPath, 'repaired');
  const before = await opened(path);
  const offsetBefore = offsetsOf(before)[0] ?? NaN;
  const { record, changed, droppedQuality } = await tune(path);
  assert.ok(record !== null && changed);
  const [first] = record.candidates;
  const chosen = record.candidates[record.chosen];
  assert.ok(first !== undefined && chosen !== undefined);
  assert.equal(first.valueOffset, offsetBefore);
  assert.ok(chosen.valueOffset < offsetBefore - 256, `${offsetBefore} became ${chosen.valueOffset}`);
  assert.ok(chosen.klNats < 0.8 * first.klNats, `KL ${first.klNats} became ${chosen.klNats}`);
  assert.ok(chosen.copyKlNats < 1.05 * first.copyKlNats, `copy KL ${first.copyKlNats} became ${chosen.copyKlNats}`);
  for (const { codedBytes } of record.candidates) {
    assert.ok(Math.abs(codedBytes / first.codedBytes - 1) < 0.01, `${codedBytes} and ${first.codedBytes} bytes`);
  }
  const after = await opened(path);
  assert.equal(after.id, before.id);
  assert.deepEqual(after.tuning, record);
  assert.deepEqual(offsetsOf(after), [chosen.valueOffset]);
  assert.deepEqual([droppedQuality, after.quality], [1, []], 'losses of other steps are gone');
  assert.ok(after.steps.some(({ ratio }) => ratio > 7) && after.steps.length > 5);
  assert.deepEqual(
    record.documents.map(({ tokens }) => tokens),
    [512],
  );

  // From what was taken, at that size, nothing is left to gain: the steps stay, and so do their measurements.
  const [point] = after.steps;
  assert.ok(point !== undefined);
  const { keyStepIndex, valueOffset } = chosen;
  const at = (stepIndex: number) => ({ ...point.key, stepIndex });
  const steps = [{ ...point, ratio: 8, key: at(keyStepIndex), value: at(keyStepIndex + valueOffset) }];
  await rewriteProfile(path, { steps, quality: [QUALITY] });
  const again = await tune(path);
  assert.deepEqual([again.changed, again.record?.chosen, again.droppedQuality], [false, 0, 0]);
  const settled = await opened(path);
  assert.deepEqual([settled.steps, settled.quality, settled.tuning], [steps, [QUALITY], again.record]);
});

test('no documents, and none that the texts could give, change nothing', async () => {
  const before = await readFile(badPath);
  const none = await tune(badPath, { documents: 0 });
  assert.deepEqual([none.record, none.changed], [null, false]);
  const warnings: string[] = [];
  const onEvent = (event: KvtcEvent): void => void (event.type === 'warning' && warnings.push(event.message));
  const short = [{ name: 'short', texts: [{ source: 'short', text: tinyText(40, 5) }] }];
  const left = await tune(badPath, { texts: short, calibrated: { tokens: 4096, seed: 3 }, onEvent });
  assert.deepEqual([left.record, warnings.length], [null, 1]);
  await assert.rejects(tune(badPath, { texts: short }), (error) => isKvtcError(error, 'KVTC_PROMPT_EMPTY'));
  assert.deepEqual(await readFile(badPath), before);
});

test('an interrupted tuning leaves the profile as it was', async () => {
  const before = await readFile(badPath);
  const controller = new AbortController();
  let seen = 0;
  const onEvent = (event: KvtcEvent): void => {
    // After the prefixes, in the midst of the first round.
    if (event.type === 'progress' && event.phase === 'tune') seen = event.done;
    if (seen > 384 + 700) controller.abort();
  };
  await assert.rejects(tune(badPath, { signal: controller.signal, onEvent }), (error) =>
    isKvtcError(error, 'KVTC_ABORTED'),
  );
  assert.ok(seen > 384 + 700);
  assert.deepEqual(await readFile(badPath), before);
  assert.ok((await readdir(folder)).every((name) => !name.endsWith('.part')));
});

test('profiles of the paper, of other models and settings that do not fit are refused', async () => {
  const other = join(folder, 'other.gguf');
  await writeTinyModel(other, 'qwen2');
  for (const [path, options, code] of [
    [paperPath, {}, 'KVTC_OPTION_INVALID'],
    [goodPath, { modelPath: other }, 'KVTC_MODEL_MISMATCH'],
    [goodPath, { documents: -1 }, 'KVTC_OPTION_INVALID'],
    [goodPath, { ratio: 0 }, 'KVTC_OPTION_INVALID'],
    [goodPath, { prefixTokens: 10 }, 'KVTC_OPTION_INVALID'],
    [join(folder, 'none'), {}, 'KVTC_FILE_NOT_FOUND'],
  ] as const) {
    await assert.rejects(tune(path, options), (error) => isKvtcError(error, code), code);
  }
});

test('after a calibration, documents come from what it left of its texts', async () => {
  const model = await openModel(modelPath, { threads: 1 });
  try {
    const tokenize = (text: string): Int32Array => model.tokenize(text, { addSpecial: false });
    const given = TINY_TEXTS.map(({ texts }) => texts.map(({ text }) => text));
    const all = given.flat().reduce((sum, text) => sum + tokenize(text).length, 0);
    const cut = { documents: 3, documentTokens: 256, tokenize };
    const calibrated = { tokens: Math.floor(all / 4), seed: 3 };
    const documents = leftDocuments(TINY_TEXTS, calibrated, cut);
    assert.deepEqual(documents.map(({ kind }) => kind).toSorted(), ['first', 'second', 'second']);
    const sampled = sampleDocuments(TINY_TEXTS, { tokens: 2 * all, documentTokens: 256, seed: 3, tokenize });
    const shareDocuments = Math.ceil(calibrated.tokens / 2 / 256);
    for (const { kind, sha256 } of documents) {
      const place = sampled.filter((one) => one.group === kind).findIndex((one) => one.sha256 === sha256);
      assert.ok(place >= shareDocuments, `${kind}: document ${place} of ${shareDocuments} calibrated on`);
    }
  } finally {
    model.close();
  }
});

test('the step for a size is found from afar, and the nearest where sizes are steps', async () => {
  const smooth = (index: number): Promise<number> => Promise.resolve(Math.round(1e6 * 2 ** (-0.6 * (index / 256))));
  const found = await stepForBytes(250_000, -900, smooth);
  assert.ok(Math.abs(found.codedBytes / 250_000 - 1) < 0.002, `${found.codedBytes}`);
  const stairs = (index: number): Promise<number> => Promise.resolve(index < 100 ? 1000 : 700);
  assert.equal((await stepForBytes(900, 0, stairs)).codedBytes, 1000);
});
