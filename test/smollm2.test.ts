// A real model from end to end, small enough for every run of the tests: SmolLM2-135M pulled (once, then kept), a short
// calibration, a slice of the evaluation, bands that a broken stage would leave.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { calibrate } from '../src/cache/calibrate.ts';
import { evaluate } from '../src/evaluation/evaluate.ts';
import type { Evaluation } from '../src/evaluation/evaluate.ts';
import type { EvaluationRow } from '../src/evaluation/summary.ts';
import { q4_0 } from '../src/evaluation/rivals/row-codecs.ts';
import { rowCodecTreatment } from '../src/evaluation/rivals/treatments.ts';
import { kvtcTreatment } from '../src/evaluation/treatment.ts';
import { calibrationTexts, heldOutTexts } from '../src/models/corpus.ts';
import { pullModel } from '../src/models/pull.ts';

describe('SmolLM2-135M, 5 000 tokens of calibration, rank 512', () => {
  let folder = '';
  let evaluation: Evaluation | undefined;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kvtc-smollm2-'));
    const { path: modelPath } = await pullModel('smollm2-135m');
    const profilePath = join(folder, 'profile.safetensors');
    const texts = await calibrationTexts();
    await calibrate({
      model: modelPath,
      texts: [
        { name: 'prose', texts: texts.filter(({ kind }) => kind !== 'code') },
        { name: 'code', texts: texts.filter(({ kind }) => kind === 'code') },
      ],
      output: profilePath,
      codec: 'paper',
      tokens: 5000,
      documentTokens: 512,
      rank: 512,
      ratios: [16],
    });
    evaluation = await evaluate({
      modelPath,
      profilePath,
      texts: await heldOutTexts(),
      prefixTokens: 512,
      continuationTokens: 128,
      copyTokens: 128,
      documents: 3,
      cacheDirectory: folder,
      treatments: ({ transforms }) => [
        kvtcTreatment(transforms, { ratio: 16, sinks: 0 }),
        rowCodecTreatment(q4_0, transforms.profile.model.geometry),
      ],
    });
  });
  after(() => rm(folder, { recursive: true, force: true }));

  const row = (treatment: string): EvaluationRow => {
    const found = evaluation?.rows.find((one) => one.treatment === treatment);
    assert.ok(found !== undefined, `${treatment} among ${evaluation?.rows.map((one) => one.treatment).join(', ')}`);
    return found;
  };

  it('loses at 16x more than the engine’s own noise, and little in all', () => {
    const floorNats = evaluation?.floor.klNats ?? 0;
    const at16 = row('kvtc 16x');
    assert.ok(floorNats > 1e-6 && floorNats < 2e-4, `floor ${floorNats}`);
    assert.ok(at16.klNats > floorNats && at16.klNats < 0.06, `KL at 16x ${at16.klNats}`);
    assert.ok(at16.top1Agreement > 0.85, `top-1 at 16x ${at16.top1Agreement}`);
    assert.ok((at16.paperRatio ?? 0) > 14 && (at16.paperRatio ?? 0) < 20, `paper ratio ${at16.paperRatio}`);
    assert.deepEqual(Object.keys(at16.byKind).toSorted(), ['address', 'code', 'moby-dick']);
  });

  it('needs its sinks: without them the loss is at least five times as large', () => {
    const without = row('kvtc 16x sinks 0');
    assert.ok(without.klNats > 5 * row('kvtc 16x').klNats, `KL without sinks ${without.klNats}`);
  });

  it('counts q4_0 at 4.5 bits a value', () => {
    assert.ok(Math.abs((row('q4_0 on rows').paperRatio ?? 0) - 16 / 4.5) < 0.05);
  });

  it('still copies from the restored cache', () => {
    const at16 = row('kvtc 16x');
    assert.ok(at16.copyAccuracyExact > 0.7, `exact ${at16.copyAccuracyExact}`);
    assert.ok(at16.copyAccuracyRestored > at16.copyAccuracyExact - 0.1, `restored ${at16.copyAccuracyRestored}`);
  });
});
