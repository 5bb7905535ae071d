// Tasks from a seed: names, lengths and texts → items in tokens. Does not know: engines, treatments, how items are scored.

import { KvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { EvaluationText } from '../documents.ts';
import type { TaskItem, TaskQuestion, TaskSource, TaskText } from './item.ts';
import { createItem, haystackOf, piecesFrom } from './item.ts';
import { keyValueTask, multiTurnTask, needleTask } from './retrieval.ts';
import { commonWordsTask, frequentWordsTask, variableTask } from './words.ts';

/** Tokens of a passage that is begun, and of its continuation that is asked for. */
const COPY_TOKENS = 32;
const GREEDY_TOKENS = 64;
/** Tokens of the text that follow the prefix before the greedy run starts. */
const GREEDY_PROMPT_TOKENS = 8;

const TASK_DEFAULTS = { items: 10, seed: 7, depths: [0.1, 0.3, 0.5, 0.7, 0.9] } as const;

const TEXT_TASKS: Readonly<Record<string, (source: TaskSource) => TaskText>> = {
  kv: keyValueTask,
  needle: needleTask,
  vt: variableTask,
  cwe: commonWordsTask,
  fwe: frequentWordsTask,
  multiturn: multiTurnTask,
};

/** Tasks that code can make, in the order they are reported. */
export const TASK_NAMES: readonly string[] = [...Object.keys(TEXT_TASKS), 'copy', 'greedy'];

export interface GenerateOptions {
  readonly names: readonly string[];
  /** Texts that haystacks and passages are taken from; kinds in turn. */
  readonly texts: readonly EvaluationText[];
  /** Tokens of a prefix, at most; a set of items for each. */
  readonly lengths: readonly number[];
  /** Items of each task at each length. */
  readonly items?: number | undefined;
  /** Where items hide what they ask for: item i at depth i modulo their number. */
  readonly depths?: readonly number[] | undefined;
  readonly seed?: number | undefined;
  /** Without special tokens. */
  readonly tokenize: (text: string) => Int32Array;
}

/**
 * Makes items of each task at each length. Item i of a task is the same whatever else is asked for.
 * Throws KVTC_OPTION_INVALID for unknown names, counts below 1, depths outside [0, 1] and lengths that a task does not
 * fit in; KVTC_PROMPT_EMPTY without text.
 */
export function generateTasks(options: GenerateOptions): TaskItem[] {
  const { names, lengths, tokenize } = options;
  const { items = TASK_DEFAULTS.items, seed = TASK_DEFAULTS.seed, depths = TASK_DEFAULTS.depths } = options;
  checkOptions(names, lengths, items, depths);
  const kinds = [...new Set(options.texts.map(({ kind }) => kind))];
  const haystacks = kinds.map((kind) =>
    haystackOf(options.texts.filter((text) => text.kind === kind).map(({ text }) => text)),
  );
  if (haystacks.length === 0) throw new KvtcError('KVTC_PROMPT_EMPTY', 'tasks are made from texts; give some');
  const out: TaskItem[] = [];
  for (const name of names) {
    for (const lengthTokens of lengths) {
      for (let index = 0; index < items; index++) {
        // Numbers of one task are unrelated to those of another, of another length and of another item.
        const random = seededRandom(hashOf(`${seed} ${name} ${lengthTokens} ${index}`));
        const source: TaskSource = {
          tokens: lengthTokens,
          random,
          depth: depths[index % depths.length] ?? 0.5,
          haystack: haystacks[index % haystacks.length] ?? haystackOf([]),
          countTokens: (text) => tokenize(text).length,
        };
        out.push(
          createItem({
            kind: name,
            source: `${name} ${index} of seed ${seed}`,
            lengthTokens,
            ...(TEXT_TASKS[name] === undefined
              ? passageTask(name, source, tokenize)
              : tokensOf(TEXT_TASKS[name](source), tokenize)),
          }),
        );
      }
    }
  }
  return out;
}

function tokensOf(task: TaskText, tokenize: (text: string) => Int32Array): Pick<TaskItem, 'prefix' | 'questions'> {
  return {
    prefix: tokenize(task.prefix),
    questions: task.questions.map(({ prompt, answer, depth }) => ({
      kind: 'answer',
      prompt: tokenize(prompt),
      answer: tokenize(answer),
      depth,
    })),
  };
}

/** Tasks on the text itself: `copy` begins a passage of the prefix anew, `greedy` lets the model go on. */
function passageTask(
  name: string,
  source: TaskSource,
  tokenize: (text: string) => Int32Array,
): Pick<TaskItem, 'prefix' | 'questions'> {
  const { tokens: length, random, haystack, depth } = source;
  const wanted = length + GREEDY_PROMPT_TOKENS;
  const start = random.below(haystack.pieces.length);
  // Tokens of a text are counted only when it is there: take pieces until it is long enough.
  let pieces = 16;
  let tokens = tokenize(piecesFrom(haystack, start, pieces).join(''));
  while (tokens.length < wanted) {
    pieces *= 2;
    tokens = tokenize(piecesFrom(haystack, start, pieces).join(''));
  }
  const prefix = tokens.slice(0, length);
  let question: TaskQuestion;
  if (name === 'greedy') {
    question = { kind: 'greedy', prompt: tokens.slice(length, wanted), tokens: GREEDY_TOKENS, depth: null };
  } else {
    if (length < 2 * COPY_TOKENS) {
      const message = `a prefix of ${length} tokens is too short to copy ${2 * COPY_TOKENS} from`;
      throw new KvtcError('KVTC_OPTION_INVALID', message, { limitTokens: length });
    }
    const at = Math.round(depth * (length - 2 * COPY_TOKENS));
    const gap = tokenize('\n\n');
    const prompt = new Int32Array(gap.length + COPY_TOKENS);
    prompt.set(gap);
    prompt.set(prefix.subarray(at, at + COPY_TOKENS), gap.length);
    const answer = prefix.slice(at + COPY_TOKENS, at + 2 * COPY_TOKENS);
    question = { kind: 'answer', prompt, answer, depth };
  }
  return { prefix, questions: [question] };
}

function checkOptions(
  names: readonly string[],
  lengths: readonly number[],
  items: number,
  depths: readonly number[],
): void {
  const invalid = (message: string): never => {
    throw new KvtcError('KVTC_OPTION_INVALID', message);
  };
  for (const name of names) {
    if (!TASK_NAMES.includes(name)) invalid(`there is no task "${name}"; tasks are ${TASK_NAMES.join(', ')}`);
  }
  if (new Set(names).size < names.length) invalid(`tasks ${names.join(', ')} hold one twice`);
  for (const [what, value] of [
    ['items of a task', items],
    ...lengths.map((length) => ['task length', length] as const),
  ] as const) {
    if (!Number.isSafeInteger(value) || value < 1) invalid(`${what}: ${value}; expected an integer of at least 1`);
  }
  if (depths.length === 0 || depths.some((depth) => !(depth >= 0 && depth <= 1))) {
    invalid(`depths ${depths.join(', ')}; expected numbers from 0 to 1`);
  }
}

/** FNV-1a, 32 bits. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
