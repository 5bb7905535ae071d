import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { PRODUCER } from './version.ts';

test('files name the version of the package', () => {
  const { name, version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as Record<
    string,
    string
  >;
  assert.equal(PRODUCER, `${name} ${version}`);
});
