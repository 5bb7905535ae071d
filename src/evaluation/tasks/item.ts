// What a task is to the protocol: a prefix whose cache is treated, and questions put to every cache of it.
// Does not know: how tasks are made up, engines, treatments.

import { createHash } from 'node:crypto';
import { KvtcError } from '../../base/errors.ts';
import type { Random } from '../../base/random.ts';
import { hashTokens } from '../../calibration/sample.ts';

/** Most tokens of an answer: they are scored in one call. */
const ANSWER_LIMIT_TOKENS = 512;

export type TaskQuestion = {
  /** Follows the prefix; at least one token. */
  readonly prompt: Int32Array;
  /** Where in the prefix the answer stands, 0 to 1; null where it has no one place. */
  readonly depth: number | null;
} & (
  | { readonly kind: 'answer'; readonly answer: Int32Array }
  | { readonly kind: 'choices'; readonly choices: readonly Int32Array[]; readonly correct: number }
  /** The answer is what the exact cache itself goes on with, token by token. */
  | { readonly kind: 'greedy'; readonly tokens: number }
);

export interface TaskItem {
  /** Name of the task: items of one kind are reported together. */
  readonly kind: string;
  readonly source: string;
  /** i32[at most lengthTokens] */
  readonly prefix: Int32Array;
  /** Tokens the prefix was built to. */
  readonly lengthTokens: number;
  readonly questions: readonly TaskQuestion[];
  /** sha256, hex, over prefix and questions. */
  readonly sha256: string;
}

/**
 * Checks an item and names it by its tokens. Throws KVTC_TASK_MALFORMED for an empty prefix, prompt, answer or list of
 * questions, an answer of more than 512 tokens, fewer than two choices, and a right choice that is none of them.
 */
export function createItem(item: Omit<TaskItem, 'sha256'>): TaskItem {
  const refuse = (message: string): never => {
    throw new KvtcError('KVTC_TASK_MALFORMED', `${item.kind}, ${item.source}: ${message}`, { source: item.source });
  };
  if (item.prefix.length === 0) refuse('the prefix has no tokens');
  if (item.questions.length === 0) refuse('there are no questions');
  const hash = createHash('sha256').update(hashTokens(item.prefix));
  for (const question of item.questions) {
    if (question.prompt.length === 0) refuse('a question has no tokens');
    const answers = answersOf(question);
    for (const answer of answers) {
      if (answer.length === 0 || answer.length > ANSWER_LIMIT_TOKENS) {
        refuse(`an answer has ${answer.length} tokens; expected 1 to ${ANSWER_LIMIT_TOKENS}`);
      }
    }
    if (question.kind === 'choices' && (answers.length < 2 || answers[question.correct] === undefined)) {
      refuse(`choice ${question.correct} of ${answers.length} is said to be right`);
    }
    const rest = question.kind === 'choices' ? question.correct : question.kind === 'greedy' ? question.tokens : '';
    hash.update(` ${question.kind} ${rest} ${question.depth}`);
    for (const tokens of [question.prompt, ...answers]) hash.update(` ${hashTokens(tokens)}`);
  }
  return { ...item, sha256: hash.digest('hex') };
}

/** Token lists that are scored; of a greedy question, a stand-in of the right length. */
export function answersOf(question: TaskQuestion): readonly Int32Array[] {
  if (question.kind === 'choices') return question.choices;
  return [question.kind === 'answer' ? question.answer : new Int32Array(question.tokens)];
}

/** Tokens a context must hold for a question beyond the prefix. */
export function questionTokens(question: TaskQuestion): number {
  return question.prompt.length + Math.max(...answersOf(question).map(({ length }) => length));
}

/** A task in words: what the generators make, before tokens. */
export interface TaskText {
  readonly prefix: string;
  readonly questions: readonly { readonly prompt: string; readonly answer: string; readonly depth: number | null }[];
}

/** What every generator is given. Equal inputs give equal tasks. */
export interface TaskSource {
  /** Most tokens of the prefix. */
  readonly tokens: number;
  /** Of this item alone. */
  readonly random: Random;
  /** 0 to 1: where the item hides what is asked for. */
  readonly depth: number;
  readonly haystack: Haystack;
  readonly countTokens: (text: string) => number;
}

/** Running text to hide things in, or to fill with; wraps around at its end. */
export interface Haystack {
  /** Sentences and lines with the white space that follows them. */
  readonly pieces: readonly string[];
  /** Different words of 4 to 9 letters, lower case, in order of first appearance. */
  readonly words: readonly string[];
}

/** Cuts texts up. Throws KVTC_PROMPT_EMPTY when there is nothing in them. */
export function haystackOf(texts: readonly string[]): Haystack {
  const text = texts.join('\n\n');
  const pieces = text.match(/[^.!?\n]*[.!?\n]+\s*|[^.!?\n]+$/gu) ?? [];
  if (pieces.length === 0) throw new KvtcError('KVTC_PROMPT_EMPTY', 'tasks are made from texts, and these are empty');
  const words = [...new Set(text.toLowerCase().match(/\b[a-z]{4,9}\b/gu) ?? [])];
  return { pieces, words };
}

/** `count` pieces from `start` on. */
export function piecesFrom(haystack: Haystack, start: number, count: number): string[] {
  return Array.from({ length: count }, (_, i) => haystack.pieces[(start + i) % haystack.pieces.length] ?? '');
}

/**
 * The largest number of units, at least `least`, whose text has no more than the source's tokens: doubling, then halving.
 * `build` must grow with its units. Throws KVTC_OPTION_INVALID when `least` units are too long already.
 */
export function fitUnits(source: TaskSource, least: number, build: (units: number) => string): number {
  const fits = (units: number): boolean => source.countTokens(build(units)) <= source.tokens;
  if (!fits(least)) {
    const message = `a prefix of ${source.tokens} tokens is too short for the task`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { limitTokens: source.tokens });
  }
  let low = least;
  let high = 2 * least;
  while (fits(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return low;
}
