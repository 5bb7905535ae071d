// The command line as a process: help, exit codes, --json, where output goes. Runs the real program.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFile, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { writeTinyModel } from './tiny-gguf.ts';

const root = fileURLToPath(new URL('../', import.meta.url));
const golden = join(root, 'test', 'golden', 'v1');
const VERBS = [
  'demo',
  'pull',
  'calibrate',
  'tune',
  'compress',
  'restore',
  'resume',
  'inspect',
  'verify',
  'evaluate',
  'ablate',
  'bench',
];

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

describe('the command line', () => {
  let scratch: string;
  before(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'kvtc-cli-'));
  });
  after(() => rm(scratch, { recursive: true, force: true }));

  /** Sends SIGINT once `interrupt` resolves. */
  function kvtc(
    words: readonly string[],
    extra: { env?: NodeJS.ProcessEnv; interrupt?: Promise<void> } = {},
  ): Promise<Ended> {
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [join(root, 'bin', 'kvtc.js'), ...words], {
        cwd: scratch,
        env: { ...process.env, KVTC_CACHE: join(scratch, 'cache'), ...extra.env },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let stdout = '';
      let stderr = '';
      child.stdout.on('data', (piece) => (stdout += String(piece)));
      child.stderr.on('data', (piece) => (stderr += String(piece)));
      child.on('error', reject);
      child.on('close', (code) => resolve({ code, stdout, stderr }));
      void extra.interrupt?.then(() => child.kill('SIGINT'));
    });
  }

  async function errorOf(words: readonly string[]): Promise<{ exit: number | null; code: string; details: unknown }> {
    const ended = await kvtc([...words, '--json']);
    const printed = JSON.parse(ended.stdout) as { error: { code: string; message: string; details: unknown } };
    assert.ok(printed.error.message.length > 10);
    assert.match(ended.stderr, new RegExp(printed.error.code));
    return { exit: ended.code, code: printed.error.code, details: printed.error.details };
  }

  it('shows all verbs, with and without --help', async () => {
    for (const words of [[], ['--help'], ['-h'], ['help']]) {
      const ended = await kvtc(words);
      assert.equal(ended.code, 0);
      assert.equal(ended.stderr, '');
      for (const verb of VERBS) assert.match(ended.stdout, new RegExp(`^  ${verb} +[A-Z]`, 'm'));
    }
  });

  it('explains every verb', async () => {
    for (const verb of VERBS) {
      const ended = await kvtc([verb, '--help']);
      assert.equal(ended.code, 0, verb);
      assert.match(ended.stdout, new RegExp(`^usage: kvtc ${verb}`, 'm'));
      assert.match(ended.stdout, /^ {2}--json /m);
      for (const line of ended.stdout.split('\n')) assert.ok(line.length <= 120, `${verb}: ${line}`);
    }
  });

  it('leaves with 2 on usage errors', async () => {
    const wrong: readonly (readonly string[])[] = [
      ['shrink'],
      ['--verbose', 'inspect'],
      ['inspect'],
      ['inspect', 'a', 'b'],
      ['inspect', 'a', '--colour'],
      ['calibrate', 'm.gguf', '--text', 'a.txt'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '--tokens', 'many'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '--ratios', '8,,16'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '-o', 'q'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '--codec', 'paper', '--tune', '2'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '--ratios', '8,16'],
      ['calibrate', 'm.gguf', '--text', 'a.txt', '-o', 'p', '--weigh-layers', 'yes', '--sensitivity', 'none'],
      ['tune', 'm.gguf', '--profile', 'p'],
      ['compress', 'm.gguf', '--profile', 'p', '-o', 'x.kvtc'],
      ['compress', 'm.gguf', '--profile', 'p', '--prompt', 'a', '--state', 'b', '-o', 'x.kvtc'],
      ['compress', 'm.gguf', '--profile', 'p', '--prompt', 'a', '-o', 'x.kvtc', '--ratio', '-3'],
      ['compress', 'm.gguf', '--profile', 'p', '--prompt', 'a', '-o', 'x.kvtc', '--max-kl', '0'],
      ['verify', join(root, 'test', 'golden', 'v1', 'one-token.kvtc'), '--text', 'a'],
      ['verify', join(root, 'test', 'golden', 'v1', 'one-token.kvtc'), '--quality', 'm.gguf', '--text', 'a'],
      ['evaluate', 'm.gguf', '--profile', 'p', '--text', 'a', '--weights', 'float'],
      ['evaluate', 'm.gguf', '--profile', 'p', '--text', 'a', '--rivals', 'rows,nativ'],
      ['ablate', 'm.gguf', '--profile', 'p', '--text', 'a', '--set', 'sinks,rank'],
    ];
    for (const words of wrong) {
      assert.deepEqual(pick(await errorOf(words)), { exit: 2, code: 'KVTC_OPTION_INVALID' }, words.join(' '));
    }
    assert.deepEqual(pick(await errorOf(['pull', 'gpt-5'])), { exit: 2, code: 'KVTC_MODEL_UNKNOWN' });
  });

  it('leaves with 2 on files that are not there', async () => {
    const text = join(root, 'LICENSE');
    for (const words of [
      ['inspect', 'none.kvtc'],
      ['verify', 'none.kvtc'],
      ['calibrate', 'none.gguf', '--text', text, '-o', 'p'],
      ['compress', 'none.gguf', '--profile', 'p', '--prompt', text, '-o', 'x.kvtc'],
      ['restore', 'none.kvtc', '--profile', 'p', '-o', 'state'],
      ['resume', 'none.gguf', 'none.kvtc', '--profile', 'p', '--prompt', 'Hello'],
      ['evaluate', 'smollm2-135m', '--profile', 'p', '--text', text],
    ]) {
      assert.deepEqual(pick(await errorOf(words)), { exit: 2, code: 'KVTC_FILE_NOT_FOUND' }, words.join(' '));
    }
    assert.deepEqual(await readdir(scratch), []);
  });

  it('leaves with 3 on damaged containers, truncated ones and other files', async () => {
    const [name] = (await readdir(golden)).filter((file) => file.endsWith('.kvtc'));
    const bytes = await readFile(join(golden, name ?? ''));
    const file = join(scratch, 'broken.kvtc');
    const verify = async (content: Uint8Array): Promise<{ exit: number | null; code: string }> => {
      await writeFile(file, content);
      return pick(await errorOf(['verify', file]));
    };
    assert.deepEqual(await verify(bytes.subarray(0, bytes.length - 1)), { exit: 3, code: 'KVTC_CONTAINER_TRUNCATED' });
    const flipped = Buffer.from(bytes);
    flipped[flipped.length - 1] = (flipped.at(-1) ?? 0) ^ 1;
    assert.deepEqual(await verify(flipped), { exit: 3, code: 'KVTC_CONTAINER_CHECKSUM' });
    assert.deepEqual(await verify(Buffer.from('just some text')), { exit: 3, code: 'KVTC_CONTAINER_MAGIC' });
    assert.deepEqual(await verify(Buffer.alloc(0)), { exit: 3, code: 'KVTC_CONTAINER_MAGIC' });
    assert.equal((await verify(Buffer.from('GGUF\x03\0\0\0 and no more'))).exit, 3);
    assert.equal((await verify(Buffer.from('\x20\0\0\0\0\0\0\0{"no": "profile"}'))).exit, 3);
    await rm(file);
  });

  it('accounts for every byte of containers and profiles', async () => {
    const files = (await readdir(golden)).filter((file) => /\.(kvtc|safetensors)$/.test(file));
    assert.ok(files.length >= 2);
    for (const name of files) {
      const file = join(golden, name);
      const found = JSON.parse((await kvtc(['inspect', file, '--json'])).stdout) as {
        kind: string;
        byteLength: number;
        parts: { name: string; byteLength: number }[];
        paperRatio?: number;
      };
      assert.equal(found.kind, name.endsWith('.kvtc') ? 'container' : 'profile');
      assert.equal(found.byteLength, (await readFile(file)).length);
      assert.equal(
        found.parts.reduce((sum, part) => sum + part.byteLength, 0),
        found.byteLength,
      );
      assert.equal(new Set(found.parts.map((part) => part.name)).size, found.parts.length);
      const shown = await kvtc(['inspect', file]);
      assert.equal(shown.code, 0);
      for (const part of found.parts) assert.ok(shown.stdout.includes(part.name), `${name}: ${part.name}`);
      if (found.kind === 'container') assert.match(shown.stdout, /by the paper's count, [\d.]+x with every byte/);
    }
  });

  it('verifies sound files, prints plain text without colours, and keeps stderr empty', async () => {
    const [name] = (await readdir(golden)).filter((file) => file.endsWith('.kvtc'));
    const file = join(scratch, 'copy.kvtc');
    await copyFile(join(golden, name ?? ''), file);
    const ended = await kvtc(['verify', file]);
    assert.deepEqual(ended, { code: 0, stdout: `${file}: sound container\n`, stderr: '' });
    assert.deepEqual(JSON.parse((await kvtc(['verify', file, '--json'])).stdout), {
      path: file,
      kind: 'container',
      ok: true,
    });
    await rm(file);
  });

  it('takes a model from texts to a container and back', async () => {
    const folder = await mkdtemp(join(scratch, 'whole-'));
    const at = (name: string): string => join(folder, name);
    const ok = async (...words: string[]): Promise<Record<string, unknown>> => {
      const ended = await kvtc([...words, '--json']);
      assert.equal(ended.code, 0, `${words.join(' ')}\n${ended.stdout}${ended.stderr}`);
      assert.equal(ended.stderr, '');
      return JSON.parse(ended.stdout) as Record<string, unknown>;
    };
    await writeTinyModel(at('model.gguf'), 'qwen2');
    await writeTinyModel(at('other.gguf'), 'qwen2', { layers: 2 });
    const text = await readFile(join(root, 'LICENSE'), 'utf8');
    await writeFile(at('prompt.txt'), text.slice(3000, 4000));
    const gguf = await ok('inspect', at('model.gguf'));
    const sum = (gguf['parts'] as { byteLength: number }[]).reduce((bytes, part) => bytes + part.byteLength, 0);
    assert.deepEqual([gguf['kind'], gguf['byteLength']], ['gguf', sum]);

    const paths = ['--text', join(root, 'LICENSE'), join(root, 'docs')];
    const profile = await ok(
      'calibrate',
      at('model.gguf'),
      ...paths,
      '--tokens',
      '5000',
      '-o',
      at('p'),
      '--codec',
      'paper',
      '--ratios',
      '4,8',
    );
    assert.deepEqual(
      (profile['plans'] as { ratio: number }[]).map(({ ratio }) => ratio),
      [4, 8],
    );
    assert.equal((await ok('inspect', at('p')))['id'], profile['profileId']);

    const shared = [at('model.gguf'), '--profile', at('p'), '--ratio', '8'];
    const kept = await ok('compress', ...shared, '--prompt', at('prompt.txt'), '-o', at('a.kvtc'), '--window', '32');
    const found = await ok('inspect', at('a.kvtc'));
    for (const name of ['paperRatio', 'effectiveRatio', 'rawBytes']) assert.equal(found[name], kept[name], name);
    assert.equal(found['byteLength'], kept['storedBytes']);
    await ok('verify', at('a.kvtc'));

    const restored = await ok('restore', at('a.kvtc'), '--profile', at('p'), '-o', at('a.state'));
    assert.equal(restored['stateBytes'], (await readFile(at('a.state'))).length);
    const again = await ok('compress', ...shared, '--state', at('a.state'), '-o', at('b.kvtc'), '--window', '32');
    assert.equal(again['tokenCount'], kept['tokenCount']);

    const resumed = await ok(
      'resume',
      at('model.gguf'),
      at('a.kvtc'),
      '--profile',
      at('p'),
      '--prompt',
      'so',
      '-n',
      '5',
    );
    assert.ok((resumed['tokens'] as number[]).length <= 5);
    assert.equal(resumed['restoredTokens'], kept['tokenCount']);
    const evaluate = ['evaluate', at('model.gguf'), '--profile', at('p'), '--text', join(root, 'LICENSE')];
    const small = [
      '--prefix',
      '256',
      '--continuation',
      '64',
      '--documents',
      '1',
      '--window',
      '32',
      '--weights',
      'as-is',
    ];
    const { rows } = (await ok(...evaluate, ...small)) as { rows: { ratio: number; klNats: number }[] };
    const measured = ['--quality', at('model.gguf'), '--text', join(root, 'LICENSE'), '--ratios', '4'];
    const { quality } = (await ok('verify', at('p'), ...measured, ...small.filter((_, i) => i < 6))) as {
      quality: { ratio: number; klNats: number }[];
    };
    assert.deepEqual((await ok('inspect', at('p')))['quality'], quality);
    const limit = ['--profile', at('p'), '--max-kl', String(quality[0]?.klNats), '--state', at('a.state')];
    const limited = await ok('compress', at('model.gguf'), ...limit, '-o', at('d.kvtc'));
    assert.deepEqual(limited['chosen'], { ratio: 4, measuredKlNats: quality[0]?.klNats });
    assert.deepEqual(
      rows.map(({ ratio }) => ratio),
      [4, 8],
    );

    const alone = small.map((word, i) => (small[i - 1] === '--documents' ? '0' : word));
    const tasks = await ok(...evaluate, ...alone, '--tasks', 'greedy,copy', '--task-items', '1');
    const answered = tasks as {
      command: string;
      commit: string;
      rows: { tasks: object; documents: number; klNats: null }[];
    };
    assert.deepEqual(
      answered.rows.map((row) => [Object.keys(row.tasks), row.documents, row.klNats]),
      [4, 8].map(() => [['copy', 'greedy'].toReversed(), 0, null]),
    );
    assert.match(answered.command, /^kvtc evaluate .*--tasks greedy,copy --task-items 1 --json$/u);
    assert.ok(answered.commit.length > 0);
    const windowless = small.filter((word, i) => word !== '--window' && small[i - 1] !== '--window');
    const ablate = ['ablate', ...evaluate.slice(1), ...windowless, '--ratios', '8'];
    const { ablations } = await ok(...ablate, '--set', 'sinks,entropy');
    assert.deepEqual(
      (ablations as { set: string; value: string | number }[]).map(({ set, value }) => `${set} ${value}`).slice(0, 4),
      ['sinks 0', 'sinks 1', 'sinks 4', 'entropy none'],
    );

    const wtc = ['--tokens', '3000', '--sensitivity', 'none', '--tune', '1', '-o', at('w')];
    const tuned = (await ok('calibrate', at('model.gguf'), ...paths, ...wtc)) as { tuning: object; steps: object[] };
    const inspected = await ok('inspect', at('w'));
    assert.deepEqual(inspected['tuning'], (tuned.tuning as { record: object }).record);
    assert.deepEqual(inspected['steps'], tuned.steps);
    const { record } = await ok('tune', at('model.gguf'), '--profile', at('w'), ...paths, ...small.slice(0, 6));
    const { prefixTokens, documents } = record as { prefixTokens: number; documents: object[] };
    assert.deepEqual([prefixTokens, documents.length], [256, 1]);
    assert.deepEqual((await ok('inspect', at('w')))['tuning'], record);

    const mismatch = ['resume', at('other.gguf'), at('a.kvtc'), '--profile', at('p'), '--prompt', 'so'];
    assert.deepEqual(pick(await errorOf(mismatch)), { exit: 3, code: 'KVTC_MODEL_MISMATCH' });
    const unplanned = [
      'compress',
      at('model.gguf'),
      '--profile',
      at('p'),
      '--state',
      at('a.state'),
      '-o',
      at('c.kvtc'),
    ];
    assert.deepEqual(pick(await errorOf(unplanned)), { exit: 2, code: 'KVTC_PLAN_MISSING' });
    const left = ['a.kvtc', 'a.state', 'b.kvtc', 'd.kvtc', 'model.gguf', 'other.gguf', 'p', 'prompt.txt', 'w'];
    assert.deepEqual((await readdir(folder)).toSorted(), left);
    await rm(folder, { recursive: true });
  });

  it('stops on an interrupt with KVTC_ABORTED, 1, and no half file', async () => {
    let asked = (): void => undefined;
    const wasAsked = new Promise<void>((resolve) => (asked = resolve));
    const server = createServer((_request, response) => {
      response.writeHead(200, { 'content-length': 1_000_000 });
      response.write('GGUF');
      asked();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const words = ['pull', 'hf:a/b/c.gguf', '--json'];
      const ended = await kvtc(words, { env: { HF_ENDPOINT: endpoint }, interrupt: wasAsked });
      assert.equal(ended.code, 1);
      assert.equal((JSON.parse(ended.stdout) as { error: { code: string } }).error.code, 'KVTC_ABORTED');
      const left = await readdir(join(scratch, 'cache', 'models'));
      assert.deepEqual(
        left.filter((name) => !name.includes('.part')),
        [],
      );
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  it('ends quietly when its reader has seen enough', async () => {
    const child = spawn(process.execPath, [join(root, 'bin', 'kvtc.js'), '--help'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    child.stdout.destroy();
    let stderr = '';
    child.stderr.on('data', (piece) => (stderr += String(piece)));
    const code = await new Promise((resolve) => child.on('close', resolve));
    assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
  });
});

function pick({ exit, code }: { exit: number | null; code: string }): { exit: number | null; code: string } {
  return { exit, code };
}
