// The arrows between rooms (docs/architecture.md): every relative import in src/ must follow one of them.

import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, it } from 'node:test';

const root = fileURLToPath(new URL('../src/', import.meta.url));

/** Rooms a room may import, for its code and for types alone. Tests may import what they like. */
const ARROWS: Readonly<Record<string, { readonly code: readonly string[]; readonly types?: readonly string[] }>> = {
  base: { code: [] },
  native: { code: ['base'] },
  rope: { code: ['base'] },
  models: { code: ['base'] },
  container: { code: ['base'] },
  linalg: { code: ['base', 'rope', 'native'] },
  profile: {
    code: ['base', 'codec/paper/plan', 'codec/wtc/classes', 'codec/wtc/family', 'linalg/dense'],
    types: ['rope', 'codec', 'linalg'],
  },
  codec: { code: ['base'], types: ['linalg', 'profile'] },
  calibration: { code: ['base', 'rope', 'linalg', 'codec', 'profile'] },
  'engines/llama': { code: ['base', 'rope', 'native'], types: ['profile'] },
  cache: {
    code: [
      'base',
      'native',
      'rope',
      'linalg',
      'container',
      'profile',
      'codec',
      'calibration',
      'engines/llama',
      'sensitivity',
    ],
  },
  evaluation: {
    code: [
      'base',
      'native',
      'rope',
      'linalg',
      'container',
      'profile',
      'codec',
      'calibration',
      'engines/llama',
      'cache',
      'models',
    ],
  },
  sensitivity: {
    code: ['base', 'rope', 'linalg', 'profile', 'calibration', 'engines/llama', 'evaluation/metrics'],
  },
  cli: { code: ['base', 'models', 'cache', 'calibration', 'evaluation', 'profile', 'engines/llama', 'index'] },
};

interface Import {
  readonly from: string;
  readonly to: string;
  readonly typesOnly: boolean;
}

const slashed = (path: string): string => path.replaceAll(sep, '/');

function roomOf(file: string): string {
  return file.startsWith('engines/')
    ? file.split('/').slice(0, 2).join('/')
    : (file.split('/')[0] ?? '').replace(/\.ts$/, '');
}

function importsOf(file: string, text: string): Import[] {
  const pattern =
    /^\s*(?:import|export)\s+(type\s)?[^'";]*?\bfrom\s+'(\.[^']+)'|import\(\s*'(\.[^']+)'|^import\s+'(\.[^']+)'/gm;
  return [...text.matchAll(pattern)].map((match) => {
    const path = match[2] ?? match[3] ?? match[4] ?? '';
    return {
      from: file,
      to: slashed(relative(root, join(root, dirname(file), path))),
      typesOnly: match[1] !== undefined,
    };
  });
}

function isAllowed({ from, to, typesOnly }: Import): boolean {
  const room = roomOf(from);
  if (roomOf(to) === room) return true;
  const arrows = ARROWS[room];
  const allowed = [...(arrows?.code ?? []), ...(typesOnly ? (arrows?.types ?? []) : [])];
  return allowed.some((target) => to === `${target}.ts` || to.startsWith(`${target}/`));
}

async function productFiles(): Promise<string[]> {
  const files: string[] = [];
  for await (const found of glob('**/*.ts', { cwd: root })) files.push(slashed(found));
  return files.filter((file) => !file.endsWith('.test.ts')).toSorted();
}

describe('the rooms of src/', () => {
  it('import only along the arrows', async () => {
    const files = await productFiles();
    const imports: Import[] = [];
    for (const file of files) {
      if (file !== 'index.ts') imports.push(...importsOf(file, await readFile(join(root, file), 'utf8')));
    }
    const wrong = imports.filter((one) => !isAllowed(one)).map(({ from, to }) => `${from} imports ${to}`);
    assert.deepEqual(wrong, []);
    assert.ok(files.length > 50, `looked at ${files.length} files`);
    assert.ok(imports.length > 100, `looked at ${imports.length} imports`);
  });

  it('are all in the table', async () => {
    const rooms = new Set((await productFiles()).map(roomOf));
    rooms.delete('index');
    assert.deepEqual([...rooms].toSorted(), Object.keys(ARROWS).toSorted());
  });

  it('would be caught importing against an arrow', () => {
    const text = [
      "import { a } from '../base/errors.ts';",
      "import type { B } from '../profile/profile.ts';",
      "import { c } from '../engines/llama/state.ts';",
      'import {\n  d,\n} from "./x";',
      "export * from '../cli/main.ts';",
      "const e = await import('../cache/compress.ts');",
    ].join('\n');
    const found = importsOf('codec/made-up.ts', text);
    assert.deepEqual(
      found.filter((one) => !isAllowed(one)).map(({ to }) => to),
      ['engines/llama/state.ts', 'cli/main.ts', 'cache/compress.ts'],
    );
    assert.equal(isAllowed({ from: 'codec/x.ts', to: 'profile/profile.ts', typesOnly: false }), false);
  });

  it('keep their files short', async () => {
    for (const file of await productFiles()) {
      const lines = (await readFile(join(root, file), 'utf8')).split('\n').length;
      assert.ok(lines <= 401, `${file} has ${lines} lines; split it by responsibility`);
    }
  });
});
