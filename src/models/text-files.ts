// Text files and folders of them, for calibration and evaluation on the user's own texts.
// Does not know: tokens, what the texts are for.

import { readFile, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { KvtcError } from '../base/errors.ts';
import { throwIfAborted, type RunOptions } from '../base/events.ts';

export interface TextFiles {
  /** The path as given. */
  readonly name: string;
  readonly texts: readonly { readonly source: string; readonly text: string }[];
}

/** Files beyond this are no texts that anybody calibrates on whole. */
const MAX_TEXT_BYTES = 256 * 1024 * 1024;

/**
 * Reads every path: a file as it is, a folder with all files below it in name order, without hidden and binary ones
 * (a zero byte in the first 8 kB) and `node_modules`. One group per path, so that each can get its share of the tokens.
 * Throws KVTC_FILE_NOT_FOUND for a path that is not there, KVTC_OPTION_INVALID for one without any text, KVTC_ABORTED.
 */
export async function readTextFiles(paths: readonly string[], options: RunOptions = {}): Promise<TextFiles[]> {
  const groups: TextFiles[] = [];
  for (const path of paths) {
    const texts: { source: string; text: string }[] = [];
    for (const file of await textPaths(path)) {
      throwIfAborted(options.signal);
      const text = await readText(file);
      if (text !== null && text.trim() !== '') texts.push({ source: file, text });
    }
    if (texts.length === 0) throw new KvtcError('KVTC_OPTION_INVALID', `${path} holds no text`, { path });
    groups.push({ name: path, texts });
  }
  return groups;
}

async function textPaths(path: string): Promise<string[]> {
  const found = await stat(path).catch((error: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `no file or folder at ${path}`, { path }, { cause: error });
  });
  if (!found.isDirectory()) return [path];
  const entries = await readdir(path, { withFileTypes: true });
  const files: string[] = [];
  for (const entry of entries.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name.startsWith('.') || entry.name === 'node_modules') continue;
    const below = join(path, entry.name);
    if (entry.isDirectory()) files.push(...(await textPaths(below)));
    else if (entry.isFile()) files.push(below);
  }
  return files;
}

async function readText(path: string): Promise<string | null> {
  const { size } = await stat(path);
  if (size > MAX_TEXT_BYTES) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `${basename(path)} has ${size} bytes, texts may have ${MAX_TEXT_BYTES}`,
      {
        path,
        gotBytes: size,
      },
    );
  }
  const bytes = await readFile(path).catch((error: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read ${path}`, { path }, { cause: error });
  });
  return bytes.subarray(0, 8192).includes(0) ? null : bytes.toString('utf8');
}
