// Tasks from a file of the user's: one JSON object a line, exact match or multiple choice (docs/tasks.md).
// Does not know: engines, treatments, how items are scored.

import { readFile } from 'node:fs/promises';
import { basename, extname } from 'node:path';
import { z } from 'zod';
import { KvtcError } from '../../base/errors.ts';
import type { TaskItem, TaskQuestion } from './item.ts';
import { createItem } from './item.ts';

const question = z.union([
  z.strictObject({ question: z.string(), answer: z.string() }),
  z.strictObject({ question: z.string(), choices: z.array(z.string()).min(2).max(64), correct: z.int().min(0) }),
]);
const line = z.union([
  z.strictObject({ prefix: z.string(), task: z.string().optional(), questions: z.array(question).min(1) }),
  ...question.options.map((single) => single.extend({ prefix: z.string(), task: z.string().optional() })),
]);

/**
 * Reads the items of a file. Lines of one task with one and the same prefix become one item, so that few-shot examples
 * shared by many questions are prefilled once. The task's name is that of the line, or of the file.
 * Throws KVTC_FILE_NOT_FOUND, KVTC_TASK_MALFORMED with the line.
 */
export async function readTaskFile(path: string, tokenize: (text: string) => Int32Array): Promise<TaskItem[]> {
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read tasks from ${path}`, { path }, { cause });
  });
  const fallback = basename(path, extname(path));
  const groups = new Map<string, { task: string; prefix: string; firstLine: number; questions: TaskQuestion[] }>();
  for (const [index, content] of text.split('\n').entries()) {
    if (content.trim() === '') continue;
    const parsed = parseLine(content, path, index + 1);
    const { prefix, task = fallback } = parsed;
    const name = JSON.stringify([task, prefix]);
    const group = groups.get(name) ?? { task, prefix, firstLine: index + 1, questions: [] };
    groups.set(name, group);
    for (const asked of 'questions' in parsed ? parsed.questions : [parsed]) {
      const prompt = tokenize(asked.question);
      group.questions.push(
        'answer' in asked
          ? { kind: 'answer', prompt, answer: tokenize(asked.answer), depth: null }
          : { kind: 'choices', prompt, choices: asked.choices.map(tokenize), correct: asked.correct, depth: null },
      );
    }
  }
  if (groups.size === 0) throw new KvtcError('KVTC_TASK_MALFORMED', `${path} holds no task`, { path });
  return [...groups.values()].map(({ task, prefix, firstLine, questions }) => {
    const tokens = tokenize(prefix);
    const source = `${basename(path)}:${firstLine}`;
    return createItem({ kind: task, source, prefix: tokens, lengthTokens: tokens.length, questions });
  });
}

function parseLine(content: string, path: string, lineNumber: number): z.infer<typeof line> {
  const malformed = (why: string, cause: unknown): KvtcError =>
    new KvtcError(
      'KVTC_TASK_MALFORMED',
      `line ${lineNumber} of ${path} is no task: ${why}`,
      { path, lineNumber },
      { cause },
    );
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (error) {
    throw malformed('it is not JSON', error);
  }
  const parsed = line.safeParse(value);
  if (!parsed.success) throw malformed(z.prettifyError(parsed.error), parsed.error);
  return parsed.data;
}
