import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { readTextFiles } from './text-files.ts';

describe('text files', () => {
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kvtc-texts-'));
    await mkdir(join(folder, 'below'));
    await mkdir(join(folder, 'empty'));
    await mkdir(join(folder, '.hidden'));
    await writeFile(join(folder, 'b.txt'), 'second');
    await writeFile(join(folder, 'a.md'), 'first');
    await writeFile(join(folder, 'below', 'c.py'), 'third');
    await writeFile(join(folder, 'image.bin'), Buffer.from([1, 2, 0, 3]));
    await writeFile(join(folder, 'blank.txt'), ' \n');
    await writeFile(join(folder, '.hidden', 'd.txt'), 'fourth');
  });
  after(() => rm(folder, { recursive: true, force: true }));

  it('come by path, in name order, without hidden, binary and blank files', async () => {
    const groups = await readTextFiles([folder, join(folder, 'b.txt')]);
    assert.deepEqual(
      groups.map((group) => group.texts.map(({ text }) => text)),
      [['first', 'second', 'third'], ['second']],
    );
    assert.deepEqual(
      groups.map((group) => group.name),
      [folder, join(folder, 'b.txt')],
    );
  });

  it('are refused where there are none', async () => {
    for (const [path, code] of [
      [join(folder, 'no-such'), 'KVTC_FILE_NOT_FOUND'],
      [join(folder, 'empty'), 'KVTC_OPTION_INVALID'],
      [join(folder, 'image.bin'), 'KVTC_OPTION_INVALID'],
    ] as const) {
      await assert.rejects(readTextFiles([path]), (error) => isKvtcError(error, code), path);
    }
  });
});
