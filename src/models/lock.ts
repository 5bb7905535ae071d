// One writer at a time for one download: a lock file that names its process, taken over when that process is gone.
// Does not know: what is being written. Works between processes of one machine, not over network file systems.

import { link, open, readFile, rename, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { writeFailed } from '../base/atomic-file.ts';
import { throwIfAborted, type RunOptions } from '../base/events.ts';

const POLL_MS = 300;

/**
 * Runs `work` while holding `lockPath`, waiting for another holder first (a warning event tells that it waits).
 * Throws KVTC_ABORTED when the signal fires during the wait, KVTC_WRITE_FAILED when the lock cannot be made.
 */
export async function withFileLock<T>(lockPath: string, options: RunOptions, work: () => Promise<T>): Promise<T> {
  let told = false;
  while (!(await tryLock(lockPath))) {
    const holder = await lockHolder(lockPath);
    if (holder !== null && !isAlive(holder)) {
      await removeStaleLock(lockPath, holder);
      continue;
    }
    if (!told)
      options.onEvent?.({ type: 'warning', message: `waiting for process ${holder ?? '?'}, which holds ${lockPath}` });
    told = true;
    throwIfAborted(options.signal);
    await sleep(POLL_MS);
    throwIfAborted(options.signal);
  }
  try {
    return await work();
  } finally {
    await rm(lockPath, { force: true });
  }
}

async function tryLock(lockPath: string): Promise<boolean> {
  try {
    const file = await open(lockPath, 'wx');
    await file.writeFile(`${process.pid}\n`);
    await file.close();
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw writeFailed(lockPath, error);
  }
}

/** Null when the lock is gone or its holder has not written its id yet. */
async function lockHolder(lockPath: string): Promise<number | null> {
  const text = await readFile(lockPath, 'utf8').catch(() => '');
  const pid = Number.parseInt(text, 10);
  return Number.isInteger(pid) && pid > 0 ? pid : null;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Renaming first lets only one of several waiters remove a stale lock; a fresh one caught by mistake is put back. */
async function removeStaleLock(lockPath: string, holder: number): Promise<void> {
  const aside = `${lockPath}.${process.pid}`;
  try {
    await rename(lockPath, aside);
  } catch {
    return;
  }
  if ((await lockHolder(aside)) !== holder) await link(aside, lockPath).catch(() => undefined);
  await rm(aside, { force: true });
}
