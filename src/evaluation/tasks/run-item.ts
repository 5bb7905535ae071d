// Puts the questions of a task item to its exact cache and to every treated one, in the same calls, and scores answers.
// Does not know: how items are made, what treatments do, how results are averaged.

import { invariant } from '../../base/errors.ts';
import { throwIfAborted } from '../../base/events.ts';
import type { ReferenceRows, Scores } from '../metrics.ts';
import { NO_SCORES, addScores, createReferenceRows } from '../metrics.ts';
import type { PrefixRun, ScoreCall } from '../protocol.ts';
import { runPrefix } from '../protocol.ts';
import type { TaskResult } from '../run-file.ts';
import type { ProtocolContext, Treatment } from '../treatment.ts';
import type { TaskItem, TaskQuestion } from './item.ts';
import { answersOf } from './item.ts';

export interface ItemRun extends PrefixRun {
  /** From createTaskReference; overwritten. */
  readonly reference: ReferenceRows;
  /** Called after each treatment, before the next. */
  readonly onResult: (treatment: Treatment, result: TaskResult) => Promise<void>;
}

/** Memory for the exact distributions of the item with the longest answers. */
export function createTaskReference(items: readonly TaskItem[], vocabulary: number): ReferenceRows {
  return createReferenceRows(Math.max(0, ...items.map(scoredRows)), vocabulary);
}

function scoredRows({ questions }: TaskItem): number {
  return questions.flatMap(answersOf).reduce((sum, { length }) => sum + length, 0);
}

/** Tokens the engine decodes for an item with so many treatments, `prefills` of them prefilling. */
export function itemTokens(item: TaskItem, treatments: number, prefills: number): number {
  let asked = 0;
  let once = 0;
  for (const question of item.questions) {
    asked += question.prompt.length - 1 + answersOf(question).reduce((sum, { length }) => sum + length, 0);
    if (question.kind === 'greedy') once += question.prompt.length + question.tokens - 1;
  }
  return item.prefix.length * (1 + prefills) + once + asked * (1 + treatments);
}

/** What one cache answered. */
interface Answered {
  readonly correct: boolean;
  readonly leadingTokens: number;
  readonly scores: Scores;
}

/**
 * Runs one item through the exact cache and every treatment. An answer is right when each of its tokens is the most
 * likely one after those before it (what greedy decoding would write), a choice when no other is likelier as a whole.
 * The answer of a greedy question is what the exact cache writes, token by token, before anything is scored.
 * The context must have room for prefix and the longest question. Throws what runPrefix throws.
 */
export async function runTaskItem(item: TaskItem, treatments: readonly Treatment[], run: ItemRun): Promise<void> {
  let asked: readonly TaskQuestion[] | undefined;
  await runPrefix(
    item.prefix,
    treatments,
    run,
    async (call) => {
      // The first call is that of the exact cache.
      asked ??= await writeGreedyAnswers(item, call, run.signal);
      let firstRow = 0;
      const answered: Answered[] = [];
      for (const question of asked) {
        answered.push(await ask(item, question, firstRow, call, run));
        firstRow += answersOf(question).reduce((sum, { length }) => sum + length, 0);
      }
      return answered;
    },
    (treatment, { exact, treated, costs }) =>
      run.onResult(treatment, {
        kind: item.kind,
        source: item.source,
        prefixTokens: item.prefix.length,
        lengthTokens: item.lengthTokens,
        questions: item.questions.map((question, i) => {
          const [before, after] = [exact[i], treated[i]];
          invariant(before !== undefined && after !== undefined, 'every question was asked');
          return {
            depth: question.depth,
            correct: after.correct,
            correctExact: before.correct,
            leadingTokens: after.leadingTokens,
            answerTokens: (answersOf(question)[question.kind === 'choices' ? question.correct : 0] as Int32Array)
              .length,
            scores: after.scores,
            exact: before.scores,
          };
        }),
        ...costs,
      }),
  );
}

/** Puts one question: its prompt but the last token, then that token with each answer, one call for each. */
async function ask(
  item: TaskItem,
  question: TaskQuestion,
  firstRow: number,
  call: ScoreCall,
  { reference, signal }: ItemRun,
): Promise<Answered> {
  const { context, by, onDecoded } = call;
  const { prompt } = question;
  const answerStart = item.prefix.length + prompt.length - 1;
  context.truncate(0, item.prefix.length);
  if (prompt.length > 1) {
    await context.decode(prompt.subarray(0, -1), { logits: 'none', signal });
    onDecoded(prompt.length - 1);
  }
  const vocabulary = reference.vocabulary;
  let row = firstRow;
  const answers: Answered[] = [];
  for (const answer of answersOf(question)) {
    throwIfAborted(signal);
    context.truncate(0, answerStart);
    const tokens = new Int32Array(answer.length);
    tokens.set(prompt.subarray(-1));
    tokens.set(answer.subarray(0, -1), 1);
    await context.decode(tokens, { logits: 'all', signal });
    onDecoded(tokens.length);
    const logits = context.logits(answer.length);
    let scores = NO_SCORES;
    let leadingTokens = 0;
    for (let i = 0; i < answer.length; i++, row++) {
      const rowScores = by(reference, {
        logits: logits.subarray(i * vocabulary, (i + 1) * vocabulary),
        firstRow: row,
        skippedRows: 0,
        targets: answer.subarray(i, i + 1),
      });
      if (rowScores.hits === 1 && leadingTokens === i) leadingTokens++;
      scores = addScores(scores, rowScores);
    }
    answers.push({ correct: leadingTokens === answer.length, leadingTokens, scores });
  }
  if (question.kind !== 'choices') return answers[0] as Answered;
  const chosen = answers.reduce(
    (best, { scores }, i) => (scores.lossSum < answers[best]!.scores.lossSum ? i : best),
    0,
  );
  const right = answers[question.correct] as Answered;
  return { ...right, correct: chosen === question.correct, scores: addScores(...answers.map(({ scores }) => scores)) };
}

async function writeGreedyAnswers(
  item: TaskItem,
  { context, onDecoded }: ScoreCall,
  signal: AbortSignal | undefined,
): Promise<TaskQuestion[]> {
  const questions: TaskQuestion[] = [];
  for (const question of item.questions) {
    if (question.kind !== 'greedy') {
      questions.push(question);
      continue;
    }
    context.truncate(0, item.prefix.length);
    const answer = new Int32Array(question.tokens);
    let next = question.prompt;
    for (let i = 0; i < answer.length; i++) {
      throwIfAborted(signal);
      await context.decode(next, { logits: 'last', signal });
      onDecoded(next.length);
      answer[i] = mostLikely(context);
      next = answer.slice(i, i + 1);
    }
    questions.push({ kind: 'answer', prompt: question.prompt, answer, depth: question.depth });
  }
  return questions;
}

function mostLikely(context: ProtocolContext): number {
  const logits = context.logits(1);
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}
