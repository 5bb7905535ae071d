// docs/errors.md and the error codes of the source say the same.

import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'node:test';
import { ERROR_KINDS, type ErrorKind } from '../src/base/errors.ts';

const root = fileURLToPath(new URL('../', import.meta.url));
const GROUPS: Readonly<Record<string, ErrorKind>> = { Usage: 'usage', Input: 'input', Failure: 'failure' };

describe('the error catalogue', () => {
  it('lists every code once, in the group of its kind, with cause and remedy', async () => {
    const documented: Record<string, ErrorKind | undefined> = {};
    let group: ErrorKind | undefined;
    for (const line of (await readFile(`${root}docs/errors.md`, 'utf8')).split('\n')) {
      if (line.startsWith('## ')) group = GROUPS[/^## (\w+):/.exec(line)?.[1] ?? ''];
      const cells = line.split('|').map((cell) => cell.trim());
      const code = cells[1] ?? '';
      if (!code.startsWith('KVTC_')) continue;
      assert.equal(documented[code], undefined, `${code} stands twice`);
      documented[code] = group;
      assert.ok((cells[2] ?? '').length > 20, `${code} says when`);
      assert.ok((cells[3] ?? '').length > 10, `${code} says what to do`);
    }
    assert.deepEqual(documented, { ...ERROR_KINDS });
  });

  it('has no code that nothing throws', async () => {
    let text = '';
    for await (const file of glob('src/**/*.ts', { cwd: root })) {
      if (!file.endsWith('.test.ts') && !file.endsWith('errors.ts')) text += await readFile(root + file, 'utf8');
    }
    const unused = Object.keys(ERROR_KINDS).filter((code) => !text.includes(`'${code}'`));
    assert.deepEqual(unused, []);
  });
});
