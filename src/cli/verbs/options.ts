// Options that several verbs share, said once. Does not know: what verbs do with them.

import type { TaskOptions } from '../../evaluation/tasks/collect.ts';
import type { Arguments, OptionSpec } from '../verb.ts';

export const MODEL_POSITIONAL = { name: 'MODEL', help: 'path of a GGUF file, or the name of a pulled model' } as const;

export const PROFILE_OPTION: OptionSpec = {
  value: 'PROFILE',
  required: true,
  help: 'the profile that kvtc calibrate made for the model',
};

export const TEXT_OPTION: OptionSpec = {
  value: 'PATH',
  many: true,
  required: true,
  help: 'text files or folders of them; each path gets the same share',
};

/** Options of evaluations that run tasks. */
export const TASK_SYNTAX: Readonly<Record<string, OptionSpec>> = {
  tasks: {
    value: 'LIST',
    help: 'tasks to run too: kv, needle, vt, cwe, fwe, multiturn, copy, greedy, or a .jsonl file',
  },
  'task-items': { value: 'N', fallback: '10', help: 'items of each task at each length' },
  'task-lengths': { value: 'LIST', fallback: 'the prefix', help: 'tokens of the prefixes that tasks make up' },
  seed: { value: 'N', fallback: '7', help: 'seed of the tasks' },
};

/** What TASK_SYNTAX was given; undefined when no tasks were asked for. */
export function taskOptions(args: Arguments): TaskOptions | undefined {
  const names = args.words('tasks');
  const rest = {
    items: args.integer('task-items', 1),
    lengths: args.positives('task-lengths'),
    seed: args.integer('seed', 0),
  };
  return names === undefined ? undefined : { names, ...rest };
}

/** The words the program was called with, quoted for a shell. */
export function commandLine(): string {
  const quote = (word: string): string =>
    /^[\w@%+=:,./-]+$/u.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
  return ['kvtc', ...process.argv.slice(2).map(quote)].join(' ');
}
