// From results per task item to figures of a table and of a needle grid. Does not know: engines, files, how rows are shown.

import { addScores, meanScores } from '../metrics.ts';
import type { QuestionResult, TaskResult } from '../run-file.ts';

/**
 * What a treatment did to a task. Questions that the exact cache itself fails say nothing about a codec: they are
 * counted by `questions − exactCorrect` and left out of everything else.
 */
export interface TaskFigures {
  readonly items: number;
  readonly questions: number;
  /** Questions that the exact cache answers. */
  readonly exactCorrect: number;
  /** Those that the treated cache answers too. */
  readonly correct: number;
  /** correct ÷ exactCorrect; null where the exact cache answers none, as are all means below. */
  readonly accuracy: number | null;
  /** Mean share of an answer's tokens before the first that is not the most likely one. */
  readonly leadingShare: number | null;
  /** KL(exact ‖ treated), mean per token of the answers. */
  readonly klNats: number | null;
  /** Mean log-likelihood of an answer, nats. */
  readonly logLikelihoodExact: number | null;
  readonly logLikelihood: number | null;
  /** Questions that only the treated cache answers. */
  readonly gained: number;
  /** By length and depth, for tasks whose answer stands in one place. */
  readonly cells: readonly TaskCell[];
}

export interface TaskCell {
  readonly lengthTokens: number;
  readonly depth: number | null;
  readonly questions: number;
  readonly exactCorrect: number;
  readonly correct: number;
  readonly klNats: number | null;
}

/** Depths are reported to this; pairs of a list lie a little off the depth that was asked for. */
const DEPTH_STEP = 0.05;

/** Figures by task, in the order of their first items. */
export function taskFigures(results: readonly TaskResult[]): Readonly<Record<string, TaskFigures>> {
  const kinds = [...new Set(results.map(({ kind }) => kind))];
  return Object.fromEntries(kinds.map((kind) => [kind, figuresOf(results.filter((result) => result.kind === kind))]));
}

function figuresOf(results: readonly TaskResult[]): TaskFigures {
  const questions = results.flatMap((result) => result.questions);
  const known = questions.filter(({ correctExact }) => correctExact);
  const correct = known.filter((question) => question.correct).length;
  return {
    items: results.length,
    questions: questions.length,
    exactCorrect: known.length,
    correct,
    accuracy: mean(known.map((question) => (question.correct ? 1 : 0))),
    leadingShare: mean(known.map(({ leadingTokens, answerTokens }) => leadingTokens / answerTokens)),
    klNats: klOf(known),
    logLikelihoodExact: mean(known.map(({ exact }) => -exact.lossSum)),
    logLikelihood: mean(known.map(({ scores }) => -scores.lossSum)),
    gained: questions.filter((question) => question.correct && !question.correctExact).length,
    cells: cellsOf(results),
  };
}

function cellsOf(results: readonly TaskResult[]): TaskCell[] {
  const cells = new Map<string, { lengthTokens: number; depth: number | null; questions: QuestionResult[] }>();
  for (const { lengthTokens, questions } of results) {
    for (const question of questions) {
      const depth =
        question.depth === null ? null : Math.round(question.depth / DEPTH_STEP) / Math.round(1 / DEPTH_STEP);
      const name = `${lengthTokens} ${depth}`;
      const cell = cells.get(name) ?? { lengthTokens, depth, questions: [] };
      cell.questions.push(question);
      cells.set(name, cell);
    }
  }
  return [...cells.values()]
    .toSorted((a, b) => a.lengthTokens - b.lengthTokens || (a.depth ?? 0) - (b.depth ?? 0))
    .map(({ lengthTokens, depth, questions }) => {
      const known = questions.filter(({ correctExact }) => correctExact);
      const correct = known.filter((question) => question.correct).length;
      return {
        lengthTokens,
        depth,
        questions: questions.length,
        exactCorrect: known.length,
        correct,
        klNats: klOf(known),
      };
    });
}

function klOf(questions: readonly QuestionResult[]): number | null {
  return questions.length === 0 ? null : meanScores(addScores(...questions.map(({ scores }) => scores))).klNats;
}

function mean(values: readonly number[]): number | null {
  return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
}
