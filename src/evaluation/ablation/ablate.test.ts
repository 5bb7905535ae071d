// All ablations on a tiny model with random weights, through the real engine, calibration and codec.

import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { writeTinyModel } from '../../../test/tiny-gguf.ts';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import { calibrate } from '../../cache/calibrate.ts';
import type { AblateOptions, Ablation, AblationRow } from './ablate.ts';
import { ablate } from './ablate.ts';
import { ABLATION_SETS } from './variants.ts';

let folder = '';
let options: AblateOptions;

function textOf(seed: number, words: number): string {
  const random = seededRandom(seed);
  const lexicon = Array.from({ length: 60 }, (_, i) => `w${(i * 7919).toString(36)}`);
  return Array.from({ length: words }, () => lexicon[Math.floor(60 * random.uniform() ** 2)]).join(' ');
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-ablate-'));
  const modelPath = join(folder, 'tiny.gguf');
  const profilePath = join(folder, 'tiny.profile.safetensors');
  await writeTinyModel(modelPath, 'llama');
  const calibrationTexts = [3, 4].map((seed) => ({
    name: `domain ${seed}`,
    texts: Array.from({ length: 6 }, (_, i) => ({ source: `${i}`, text: textOf(10 * seed + i, 400) })),
  }));
  await calibrate({
    model: modelPath,
    texts: calibrationTexts,
    output: profilePath,
    codec: 'paper',
    tokens: 6000,
    documentTokens: 512,
    rank: 96,
    ratios: [4, 8, 16],
    threads: 1,
  });
  options = {
    modelPath,
    profilePath,
    texts: [{ source: 'a', kind: 'one', text: textOf(1, 400) }],
    calibrationTexts,
    calibrationTokens: 4096,
    calibrationDocumentTokens: 512,
    rank: 96,
    ratios: [8],
    prefixTokens: 384,
    continuationTokens: 64,
    copyTokens: 64,
    documents: 1,
    threads: 1,
    cacheDirectory: join(folder, 'cache'),
    runPath: join(folder, 'run.jsonl'),
    command: 'kvtc ablate tiny',
  };
});
after(() => rm(folder, { recursive: true }));

function rowsOf({ ablations }: Ablation, set: string): AblationRow[] {
  return ablations.filter((row) => row.set === set);
}

describe('ablate', () => {
  it('compares every value of every set on the same document, and finds what it has measured again', async () => {
    const ablation = await ablate({ ...options, sets: ABLATION_SETS });
    const valuesOf = (set: string): (string | number)[] => rowsOf(ablation, set).map(({ value }) => value);
    assert.deepEqual(valuesOf('sinks'), [0, 1, 4]);
    assert.deepEqual(valuesOf('window'), [0, 16, 64, 128, 256]);
    assert.deepEqual(valuesOf('plan'), ['bit plan', 'truncation']);
    assert.deepEqual(valuesOf('split'), ['keys 4x, values 16x', 'keys 8x, values 8x', 'keys 16x, values 4x']);
    assert.deepEqual(valuesOf('chunk'), [16, 64, 256, 'whole']);
    assert.equal(valuesOf('entropy').length, 7);
    // Rank 96 has no room for groups of 256 alone.
    assert.equal(valuesOf('groups').length, 4);
    assert.equal(valuesOf('fp8').length, 3);
    assert.deepEqual(valuesOf('layers'), [1, 'all']);
    assert.deepEqual(valuesOf('tokens'), [1024, 2048, 4096]);
    assert.deepEqual(valuesOf('domain'), ['domain 3', 'domain 4', 'mixed']);
    assert.deepEqual(valuesOf('seed'), [7, 8, 9]);
    for (const row of ablation.ablations) assert.ok(row.klNats > 0 && row.documents === 1 && row.atRatio === 8);

    const find = (set: string, value: string | number): AblationRow => {
      const row = rowsOf(ablation, set).find((found) => found.value === value);
      assert.ok(row !== undefined, `${set} ${value}`);
      return row;
    };
    // The defaults are one measurement, wherever they stand.
    for (const [set, value] of [
      ['window', 128],
      ['plan', 'bit plan'],
      ['chunk', 256],
      ['split', 'keys 8x, values 8x'],
    ] as const) {
      assert.equal(find(set, value).klNats, find('sinks', 4).klNats, set);
    }
    const [whole, none] = [find('window', 256), find('window', 0)];
    assert.ok(whole.klNats < none.klNats && (whole.effectiveRatio ?? 9) < (none.effectiveRatio ?? 0));
    assert.ok(find('plan', 'truncation').klNats > find('plan', 'bit plan').klNats);
    const entropy = rowsOf(ablation, 'entropy');
    assert.equal(new Set(entropy.map(({ klNats }) => klNats)).size, 1, 'entropy coding changes no value');
    assert.ok((find('entropy', 'none').paperRatio ?? 9) < (find('entropy', 'DEFLATE 6').paperRatio ?? 0));
    assert.equal(find('layers', 'all').klNats, find('domain', 'mixed').klNats, 'equal settings are one profile');
    assert.notEqual(find('layers', 1).klNats, find('layers', 'all').klNats);
    assert.notEqual(find('seed', 7).klNats, find('seed', 8).klNats);
    assert.equal(find('groups', '1, 16, 64, 256, 1024').klNats, find('fp8', 'without metadata').klNats);

    assert.match(ablation.commit, /^([0-9a-f]{40}( modified)?|kvtc \d.*)$/u);
    assert.equal(ablation.command, 'kvtc ablate tiny');
    const [model] = await readdir(join(folder, 'cache', 'ablate'));
    const files = await readdir(join(folder, 'cache', 'ablate', model ?? ''));
    const profiles = files.filter((name) => name.endsWith('.safetensors'));
    assert.equal(profiles.length, 8, 'eight different profiles');

    const totals: number[] = [];
    const again = await ablate({
      ...options,
      sets: ABLATION_SETS,
      onEvent: (event) => {
        if (event.type === 'progress' && event.phase === 'evaluate') totals.push(event.total);
      },
    });
    assert.deepEqual(totals, [0]);
    assert.deepEqual(again.ablations, ablation.ablations);
  });

  it('refuses sets it cannot make: without texts, without plans to split, unknown', async () => {
    for (const [change, code] of [
      [{ sets: ['groups'], calibrationTexts: [] }, 'KVTC_OPTION_INVALID'],
      [{ sets: ['seed'], calibrationTexts: [] }, 'KVTC_OPTION_INVALID'],
      [{ sets: ['split'], ratios: [16] }, 'KVTC_OPTION_INVALID'],
      [{ sets: [] }, 'KVTC_OPTION_INVALID'],
      [{ sets: ['rank' as 'plan'] }, 'KVTC_OPTION_INVALID'],
      [{ ratios: [5], sets: ['sinks'] }, 'KVTC_PLAN_MISSING'],
      [{ signal: AbortSignal.abort() }, 'KVTC_ABORTED'],
    ] as const) {
      await assert.rejects(
        ablate({ ...options, ...change }),
        (error) => isKvtcError(error, code),
        JSON.stringify(change),
      );
    }
  });
});
