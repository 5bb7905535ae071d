// All tasks of an evaluation: made up by name, or read from the user's files. Does not know: how they are scored.

import { KvtcError } from '../../base/errors.ts';
import type { EvaluationText } from '../documents.ts';
import { TASK_NAMES, generateTasks } from './generate.ts';
import type { TaskItem } from './item.ts';
import { readTaskFile } from './jsonl.ts';

export interface TaskOptions {
  /** Names of TASK_NAMES, and paths of JSONL files (docs/tasks.md). */
  readonly names: readonly string[];
  /** Tokens of made-up prefixes; default: those of the documents. */
  readonly lengths?: readonly number[] | undefined;
  /** Items of each made-up task at each length; default 10. */
  readonly items?: number | undefined;
  /** Where items hide what they ask for, 0 to 1; item i at depth i modulo their number. */
  readonly depths?: readonly number[] | undefined;
  readonly seed?: number | undefined;
}

/**
 * The items of all tasks asked for; none when none were. Throws KVTC_OPTION_INVALID for a name that is neither a task nor
 * a .jsonl file, and what generateTasks and readTaskFile throw.
 */
export async function collectTasks(
  options: TaskOptions | undefined,
  given: {
    readonly texts: readonly EvaluationText[];
    readonly prefixTokens: number;
    readonly tokenize: (text: string) => Int32Array;
  },
): Promise<TaskItem[]> {
  if (options === undefined) return [];
  const { texts, tokenize } = given;
  const { names, lengths = [given.prefixTokens], items, depths, seed } = options;
  const made = names.filter((name) => TASK_NAMES.includes(name));
  const out = made.length === 0 ? [] : generateTasks({ names: made, lengths, items, depths, seed, texts, tokenize });
  for (const name of names) {
    if (TASK_NAMES.includes(name)) continue;
    if (!name.endsWith('.jsonl')) {
      const message = `there is no task "${name}"; tasks are ${TASK_NAMES.join(', ')}, and files named .jsonl`;
      throw new KvtcError('KVTC_OPTION_INVALID', message, { task: name });
    }
    out.push(...(await readTaskFile(name, tokenize)));
  }
  return out;
}
