// Where a measurement comes from: which code, which machine, which words on the command line.
// Does not know: what is measured.

import { execFile } from 'node:child_process';
import { realpath } from 'node:fs/promises';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { PRODUCER } from '../base/version.ts';

export interface Machine {
  readonly processor: string;
  readonly threads: number;
  readonly platform: string;
  readonly node: string;
  readonly engine: string;
}

export function describeMachine(threads: number, engine: string): Machine {
  return {
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    threads,
    platform: `${process.platform}-${process.arch}`,
    node: process.version,
    engine,
  };
}

/**
 * The commit that runs, with ` modified` where tracked sources differ from it; the package's name and version where this
 * is no checkout of its own repository.
 */
export async function codeVersion(): Promise<string> {
  const root = fileURLToPath(new URL('../../', import.meta.url));
  const git = async (...words: string[]): Promise<string> =>
    (await promisify(execFile)('git', ['-C', root, ...words])).stdout.trim();
  try {
    // An installed package may lie in a repository of its user's.
    const top = await git('rev-parse', '--show-toplevel');
    if ((await realpath(top)) !== (await realpath(root))) return PRODUCER;
    const changed = await git('status', '--porcelain', '--untracked-files=no', '--', 'src', 'package.json');
    return `${await git('rev-parse', 'HEAD')}${changed === '' ? '' : ' modified'}`;
  } catch {
    return PRODUCER;
  }
}
