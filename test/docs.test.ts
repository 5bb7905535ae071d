// The documents name only files and functions that exist, link only to pages that exist, and their example runs.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { access, glob, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { describe, it } from 'node:test';
import { writeTinyModel } from './tiny-gguf.ts';

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

  it("run: the README's library example on a tiny model", async () => {
    const readme = await readFile(join(root, 'README.md'), 'utf8');
    const example = /```ts\n(.*?)```/s.exec(readme)?.[1] ?? '';
    assert.ok(example.split('\n').length <= 22 && example.includes("from 'kvtc'"));
    const folder = await mkdtemp(join(tmpdir(), 'kvtc-readme-'));
    try {
      await writeTinyModel(join(folder, 'model.gguf'), 'llama');
      const text = await readFile(join(root, 'LICENSE'), 'utf8');
      await writeFile(join(folder, 'notes.txt'), text);
      await writeFile(join(folder, 'prompt.txt'), text.slice(2000, 3500));
      const library = pathToFileURL(join(root, 'src', 'index.ts')).href;
      await writeFile(join(folder, 'example.ts'), example.replace("from 'kvtc'", `from '${library}'`));
      await writeFile(join(folder, 'package.json'), '{"type":"module"}');
      const { stdout } = await promisify(execFile)(process.execPath, ['example.ts'], { cwd: folder });
      const printed = /^(\d+) bytes of cache in (\d+): ratio ([\d.]+) with every byte\n$/.exec(stdout);
      assert.ok(printed, stdout);
      assert.ok(Math.abs(Number(printed[1]) / Number(printed[2]) - Number(printed[3])) < 1e-9);
      const kept = [
        'example.ts',
        'model.gguf',
        'model.profile',
        'notes.txt',
        'package.json',
        'prompt.kvtc',
        'prompt.txt',
      ];
      assert.deepEqual((await readdir(folder)).toSorted(), kept);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
