// The package as a stranger gets it: built, packed, checked, installed in an empty project, used from there.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../', import.meta.url));
const tool = (name: string): string => join(root, 'node_modules', '.bin', name);
// npm sets these for its scripts; an npm started from here must not take them for its own settings.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_|^NODE_TEST/.test(name)));

/** Runs a script with the Node that runs the tests; a failure shows all that was printed. */
async function node(args: readonly string[], cwd: string): Promise<string> {
  try {
    return (await run(process.execPath, args, { cwd, env })).stdout;
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string };
    throw new Error(`${args.join(' ')}\n${stdout ?? ''}\n${stderr ?? ''}`, { cause: error });
  }
}

describe('the published package', () => {
  let scratch: string;
  let tarball: string;
  let project: string;
  let packed: { readonly filename: string; readonly files: readonly { readonly path: string }[] };

  before(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'kvtc-package-'));
    await run('npm', ['run', 'build'], { cwd: root, env });
    const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', scratch], { cwd: root, env });
    const reports: unknown = JSON.parse(stdout);
    // npm 11 prints a list, later versions an object by package name.
    packed = Object.values(reports as Record<string, typeof packed>)[0] as typeof packed;
    tarball = join(scratch, packed.filename);
    project = join(scratch, 'project');
    await mkdir(project);
    await writeFile(join(project, 'package.json'), '{"name":"probe","private":true,"type":"module"}');
    await run('npm', ['install', '--no-fund', '--no-audit', '--prefer-offline', tarball], { cwd: project, env });
  });
  after(() => rm(scratch, { recursive: true, force: true }));

  it('holds the built code, types and documents, and no tests, sources or data', () => {
    const paths = packed.files.map((file) => file.path);
    for (const wanted of [
      'bin/kvtc.js',
      'dist/index.js',
      'dist/index.d.ts',
      'README.md',
      'LICENSE',
      'docs/errors.md',
    ]) {
      assert.ok(paths.includes(wanted), `${wanted} is missing`);
    }
    const odd = paths.filter(
      (path) => !/^(bin|dist|docs)\/|^(package\.json|README\.md|LICENSE|CHANGELOG\.md)$/.test(path),
    );
    assert.deepEqual(odd, []);
    assert.deepEqual(
      paths.filter((path) => /test|\.part$|(?<!\.d)\.ts$/.test(path)),
      [],
    );
  });

  it('satisfies publint and attw', async () => {
    await run(tool('publint'), ['--strict', tarball], { cwd: root, env });
    await run(tool('attw'), [tarball, '--profile', 'esm-only'], { cwd: root, env });
  });

  it('brings a command line that runs as JavaScript', async () => {
    const bin = join(project, 'node_modules', 'kvtc', 'bin', 'kvtc.js');
    assert.match(await node([bin, '--help'], project), /usage: kvtc VERB/);
    const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
    assert.equal((await node([bin, '--version'], project)).trim(), version);
    const container = join(root, 'test', 'golden', 'v1', 'windowed-deflate.kvtc');
    assert.match(await node([bin, 'verify', container], project), /sound container/);
    await assert.rejects(node([bin, 'verify', join(project, 'package.json')], project), /KVTC_CONTAINER_MAGIC/);
  });

  it('exports what the documentation promises, with types', async () => {
    await writeFile(
      join(project, 'use.ts'),
      [
        'import { calibrate, compress, inspect, isKvtcError, openProfile, restore } from "kvtc";',
        'for (const one of [calibrate, compress, inspect, openProfile, restore]) if (typeof one !== "function") throw one;',
        'const reason: unknown = await inspect("nothing-here").catch((error: unknown) => error);',
        'if (!isKvtcError(reason, "KVTC_FILE_NOT_FOUND")) throw reason;',
        'console.log(reason.code);',
      ].join('\n'),
    );
    assert.equal((await node(['use.ts'], project)).trim(), 'KVTC_FILE_NOT_FOUND');
    const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--types', 'node'];
    const typeRoots = ['--typeRoots', join(root, 'node_modules', '@types')];
    await run(tool('tsc'), [...flags, ...typeRoots, 'use.ts'], { cwd: project, env });
  });
});

describe('the repository', () => {
  it('locks dependencies without the address of a registry', async () => {
    const lock = await readFile(join(root, 'package-lock.json'), 'utf8');
    assert.ok(lock.includes('"integrity"'));
    assert.equal(lock.includes('"resolved"'), false);
  });

  it('pins every dependency to one version', async () => {
    const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as Record<
      string,
      Record<string, string>
    >;
    const kinds = ['dependencies', 'devDependencies', 'optionalDependencies'];
    const versions = kinds.flatMap((kind) => Object.entries(manifest[kind] ?? {}));
    assert.ok(versions.length > 10);
    for (const [name, version] of versions) assert.match(version, /^\d+\.\d+\.\d+$/, name);
  });
});
