import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { writeCorpusFolders } from './corpus-folders.ts';
import { calibrationTexts, heldOutTexts } from './corpus.ts';
import { readTextFiles } from './text-files.ts';

describe('the corpora as folders', () => {
  let scratch: string;
  before(async () => (scratch = await mkdtemp(join(tmpdir(), 'kvtc-texts-'))));
  after(() => rm(scratch, { recursive: true, force: true }));

  it('give the texts of the corpora in their order', async () => {
    const directory = join(scratch, 'texts');
    await writeCorpusFolders(directory);
    const { calibration, heldOut, files } = await writeCorpusFolders(directory); // again, over the first
    const all = { calibration: await calibrationTexts(), heldOut: await heldOutTexts() };
    assert.equal(files, all.calibration.length + all.heldOut.length);
    for (const [folders, texts] of [
      [calibration, all.calibration],
      [heldOut, all.heldOut],
    ] as const) {
      for (const group of await readTextFiles(folders)) {
        const expected = texts.filter(({ kind }) => kind === basename(group.name)).map(({ text }) => text);
        assert.deepEqual(
          group.texts.map(({ text }) => text),
          expected,
        );
      }
    }
    assert.deepEqual(await readdir(scratch), ['texts'], 'no unfinished folder stays');
  });

  it('refuse a place that cannot be written', async () => {
    const file = join(scratch, 'file');
    await writeFile(file, '');
    await assert.rejects(writeCorpusFolders(join(file, 'texts')), (error) => isKvtcError(error, 'KVTC_WRITE_FAILED'));
  });
});
