// The program: finds the verb, runs it, prints its outcome on stdout and everything else on stderr, sets the exit code.
// Exit codes: 0 done, 1 failure, 2 usage, 3 corrupt or mismatched input. Never calls process.exit(): handles drain.

import { ERROR_KINDS, KvtcError, isKvtcError, type ErrorKind } from '../base/errors.ts';
import { parseArguments, verbHelp } from './arguments.ts';
import { progressView } from './progress.ts';
import type { Verb } from './verb.ts';

const EXIT_CODES: Readonly<Record<ErrorKind, number>> = { failure: 1, usage: 2, input: 3 };

/** Loaded when called, so that help and usage errors need neither engine nor codec. */
const VERBS: Readonly<Record<string, () => Promise<{ readonly verb: Verb }>>> = {
  demo: () => import('./verbs/demo.ts'),
  pull: () => import('./verbs/pull.ts'),
  calibrate: () => import('./verbs/calibrate.ts'),
  compress: () => import('./verbs/compress.ts'),
  restore: () => import('./verbs/restore.ts'),
  resume: () => import('./verbs/resume.ts'),
  inspect: () => import('./verbs/inspect.ts'),
  verify: () => import('./verbs/verify.ts'),
  tune: () => import('./verbs/tune.ts'),
  evaluate: () => import('./verbs/evaluate.ts'),
  ablate: () => import('./verbs/ablate.ts'),
  bench: () => import('./verbs/bench.ts'),
};

/** Runs one command line (without `node` and script). Resolves when the work is done; the exit code is set by then. */
export async function main(words: readonly string[]): Promise<void> {
  // A reader such as `head` that closes the pipe has what it wanted; that is no failure of ours.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
  const json = words.includes('--json');
  try {
    const printed = await runVerb(words, json);
    process.stdout.write(`${printed}\n`);
  } catch (error) {
    report(error, json);
  }
}

async function runVerb(words: readonly string[], json: boolean): Promise<string> {
  const [name = '--help', ...rest] = words;
  if (name === '--help' || name === '-h' || name === 'help') return programHelp();
  if (name === '--version') return packageVersion();
  const load = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
  if (load === undefined) {
    const what = name.startsWith('-') ? 'the verb comes first' : `there is no verb "${name}"`;
    const message = `${what}; verbs are ${Object.keys(VERBS).join(', ')}; see: kvtc --help`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { verb: name });
  }
  const { verb } = await load();
  const args = parseArguments(name, verb.syntax, rest);
  if (args.has('help')) return verbHelp(name, verb.syntax);

  const controller = new AbortController();
  // The second signal finds no handler and ends the process at once.
  const stop = (signal: NodeJS.Signals): void => controller.abort(new Error(`stopped by ${signal}`));
  process.once('SIGINT', stop).once('SIGTERM', stop);
  const progress = progressView(process.stderr, json);
  try {
    const print = (text: string): void => {
      progress.close();
      if (!json) process.stdout.write(text);
    };
    const outcome = await verb.run(args, { signal: controller.signal, onEvent: progress.onEvent, print });
    return json ? JSON.stringify(outcome.json) : outcome.text;
  } finally {
    progress.close();
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

function report(error: unknown, json: boolean): void {
  const known = isKvtcError(error);
  process.exitCode = known ? EXIT_CODES[ERROR_KINDS[error.code]] : 1;
  const code = known ? error.code : 'INTERNAL';
  const message = error instanceof Error ? error.message : String(error);
  if (json) {
    const details = known ? error.details : {};
    const plain = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? Number(value) : value);
    process.stdout.write(`${JSON.stringify({ error: { code, message, details } }, plain)}\n`);
  }
  process.stderr.write(`kvtc: ${message} (${code})\n`);
  // A defect of the program: the stack helps whoever reports it.
  if (!known && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
}

async function programHelp(): Promise<string> {
  const names = Object.keys(VERBS);
  const width = Math.max(...names.map((name) => name.length));
  const lines: string[] = [];
  for (const name of names) {
    const { verb } = (await VERBS[name]?.()) ?? {};
    lines.push(`  ${name.padEnd(width)}  ${verb?.syntax.summary ?? ''}`);
  }
  return [
    'kvtc keeps the KV cache of a prompt small and gives it back faster than prefill.',
    '',
    'usage: kvtc VERB [arguments] [--json] [--help]',
    '',
    ...lines,
    '',
    'Start with: kvtc demo',
    'Results go to stdout, all else to stderr. Exit code: 0 done, 1 failure, 2 usage, 3 corrupt or mismatched input.',
  ].join('\n');
}

async function packageVersion(): Promise<string> {
  const { createRequire } = await import('node:module');
  const found: unknown = createRequire(import.meta.url)('../../package.json');
  return String((found as { version?: unknown }).version);
}
