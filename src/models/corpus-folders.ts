// Writes the corpora out as folders, so that verbs that take texts can be run on them as on any other.
// Does not know which texts they are (corpus.ts).

import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFailed } from '../base/atomic-file.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { CorpusText } from './corpus.ts';
import { calibrationTexts, heldOutTexts } from './corpus.ts';

export interface CorpusFolders {
  /** Folders of texts to calibrate on, one a kind. */
  readonly calibration: readonly string[];
  /** Folders of texts never calibrated on, one a kind. */
  readonly heldOut: readonly string[];
  readonly files: number;
}

/**
 * Writes `directory`/calibration/KIND and `directory`/held-out/KIND, replacing what was there. File names begin with a
 * number, so that name order is the corpora's own. Throws KVTC_CORPUS_MISSING, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function writeCorpusFolders(directory: string, options: RunOptions = {}): Promise<CorpusFolders> {
  const sets = { calibration: await calibrationTexts(), 'held-out': await heldOutTexts() };
  const unfinished = `${directory}.part`;
  try {
    await rm(unfinished, { recursive: true, force: true });
    for (const [set, texts] of Object.entries(sets)) {
      for (const [index, { kind, source, text }] of texts.entries()) {
        throwIfAborted(options.signal);
        const folder = join(unfinished, set, kind);
        await mkdir(folder, { recursive: true });
        const name = `${String(index).padStart(4, '0')}-${source.replaceAll('/', '-')}`;
        await writeFile(join(folder, name), text);
      }
    }
    await rm(directory, { recursive: true, force: true });
    await rename(unfinished, directory);
  } catch (error) {
    await rm(unfinished, { recursive: true, force: true }).catch(() => undefined);
    throwIfAborted(options.signal);
    throw writeFailed(directory, error);
  }
  const folders = (set: string, texts: readonly CorpusText[]): string[] =>
    [...new Set(texts.map(({ kind }) => kind))].map((kind) => join(directory, set, kind));
  return {
    calibration: folders('calibration', sets.calibration),
    heldOut: folders('held-out', sets['held-out']),
    files: sets.calibration.length + sets['held-out'].length,
  };
}
