import assert from 'node:assert/strict';
import { appendFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { NO_SCORES } from './metrics.ts';
import type { DocumentResult, ResultKey } from './run-file.ts';
import { openRunFile } from './run-file.ts';

const KEY: ResultKey = {
  model: 'aa',
  weights: 'f32',
  treatment: 'kvtc 16',
  document: 'bb',
  prefixTokens: 512,
  continuationTokens: 128,
  copyTokens: 64,
  sliceTokens: 64,
};

const RESULT: DocumentResult = {
  kind: 'prose',
  source: 'a',
  continuation: { ...NO_SCORES, rows: 128, klSum: 0.1 + 0.2 },
  continuationExact: NO_SCORES,
  copy: NO_SCORES,
  copyExact: NO_SCORES,
  paperRatio: 18.25,
  effectiveRatio: null,
  storedBytes: 50,
  prefillMs: 1,
  compressMs: 2,
  restoreMs: 3,
  continueMs: 4,
};

describe('a run file', () => {
  let folder = '';
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kvtc-run-'));
  });
  after(() => rm(folder, { recursive: true }));

  it('gives back what an earlier opening added, for equal keys only', async () => {
    const path = join(folder, 'kept.jsonl');
    const first = await openRunFile(path);
    assert.equal(first.find(KEY), undefined);
    await first.add(KEY, RESULT);
    assert.deepEqual(first.find(KEY), RESULT);
    await first.close();
    const second = await openRunFile(path);
    const reordered = Object.fromEntries(Object.entries(KEY).toReversed()) as ResultKey;
    assert.deepEqual(second.find(reordered), RESULT);
    for (const other of [{ document: 'cc' }, { treatment: 'kvtc 8' }, { prefixTokens: 513 }, { weights: 'as-is' }]) {
      assert.equal(second.find({ ...KEY, ...other }), undefined);
    }
    await second.add({ ...KEY, document: 'cc' }, RESULT);
    await second.close();
    assert.equal((await readFile(path, 'utf8')).trimEnd().split('\n').length, 2);
  });

  it('drops a last line that an interruption cut short, and goes on after it', async () => {
    const path = join(folder, 'cut.jsonl');
    const first = await openRunFile(path);
    await first.add(KEY, RESULT);
    await first.close();
    await appendFile(path, '{"key":{"model":"ü');
    const second = await openRunFile(path);
    assert.deepEqual(second.find(KEY), RESULT);
    await second.add({ ...KEY, document: 'cc' }, RESULT);
    await second.close();
    const third = await openRunFile(path);
    assert.deepEqual(third.find({ ...KEY, document: 'cc' }), RESULT);
    await third.close();
  });

  it('refuses whole lines that are no results, and leaves the file as it is', async () => {
    for (const bad of ['not json\n', '{"key":{},"result":{}}\n', '7\n']) {
      const path = join(folder, 'bad.jsonl');
      await writeFile(path, bad);
      await assert.rejects(openRunFile(path), (error) => isKvtcError(error, 'KVTC_RUN_MALFORMED'));
      assert.equal(await readFile(path, 'utf8'), bad);
    }
  });

  it('says where it cannot write', async () => {
    await assert.rejects(openRunFile(join(folder, 'missing', 'run.jsonl')), (error) =>
      isKvtcError(error, 'KVTC_WRITE_FAILED'),
    );
  });

  it('keeps results in memory when given no path', async () => {
    const run = await openRunFile(null);
    await run.add(KEY, RESULT);
    assert.deepEqual(run.find(KEY), RESULT);
    await run.close();
  });
});
