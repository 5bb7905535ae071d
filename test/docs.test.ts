// The documents name only files and functions that exist, link only to pages that exist, and their example runs.

import assert from 'node:assert/strict';
import { access, glob, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'node:test';

const root = fileURLToPath(new URL('../', import.meta.url));

async function pages(): Promise<string[]> {
  const found: string[] = [];
  for await (const page of glob(['*.md', 'docs/**/*.md'], { cwd: root })) found.push(page);
  return found.toSorted();
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

describe('the documents', () => {
  it('name only source files and functions that exist', async () => {
    const wrong: string[] = [];
    let looked = 0;
    for (const page of ['docs/paper-map.md', 'docs/architecture.md']) {
      const text = await readFile(join(root, page), 'utf8');
      for (const [, path = '', names] of text.matchAll(/`(?:src\/)?([\w/.-]+\.ts)(?:: ([\w, ]+))?`/g)) {
        looked++;
        const source = await readFile(join(root, 'src', path), 'utf8').catch(() => null);
        if (source === null) wrong.push(`${page}: ${path}`);
        for (const name of names?.split(', ') ?? []) {
          const exported = new RegExp(`^export (async )?(function\\*?|const|interface|type|class) ${name}\\b`, 'm');
          if (source !== null && !exported.test(source)) wrong.push(`${page}: ${path} has no ${name}`);
        }
      }
    }
    assert.deepEqual(wrong, []);
    assert.ok(looked > 40, `looked at ${looked} places`);
  });

  it('link only to pages that exist', async () => {
    const wrong: string[] = [];
    for (const page of await pages()) {
      const text = await readFile(join(root, page), 'utf8');
      for (const [, target = ''] of text.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)) {
        if (!(await exists(join(root, dirname(page), target)))) wrong.push(`${page}: ${target}`);
      }
      for (const [, target = ''] of text.matchAll(/`((?:docs|reference|bench)\/[\w/.-]+\.\w+)`/g)) {
        if (!(await exists(join(root, target)))) wrong.push(`${page}: ${target}`);
      }
    }
    assert.deepEqual(wrong, []);
    assert.ok((await pages()).length >= 8);
  });
});
