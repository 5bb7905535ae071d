// The tasks' section: answers kept against size, grids of length and depth, and a table with every number.
// Does not know: how tasks are made or run.

import type { Evaluation } from '../evaluate.ts';
import type { EvaluationRow } from '../summary.ts';
import { wholeNumber } from './chart.ts';
import { chartsHtml, detailsHtml, escapeHtml, legendHtml, sectionHtml, tableHtml } from './html.ts';
import { GRID_LEGEND, hasGrid, needleChart } from './needle-charts.ts';
import { isPlainKvtc } from './comparison.ts';
import { taskChart } from './rate-charts.ts';
import { list, nats, percent } from './words.ts';

/** Empty when no tasks were run. */
export function taskSection({ rows, floor }: Evaluation): string {
  const tasks = [...new Set(rows.flatMap((row) => Object.keys(row.tasks ?? {})))];
  if (tasks.length === 0) return '';
  const failed = tasks.filter((task) => (rows[0]?.tasks?.[task]?.exactCorrect ?? 0) === 0);
  const text =
    'Questions that the exact cache itself gets wrong say nothing about a codec: they are counted and left out. ' +
    (failed.length === 0 ? '' : `The exact cache answers nothing of ${list(failed)}.`);
  const charts = chartsHtml(tasks.map((task) => taskChart(task, rows)));
  const cells = [...rows, floor].flatMap((row) =>
    Object.entries(row.tasks ?? {}).flatMap(([task, { cells: found }]) =>
      found.map((cell) => [
        `${row.treatment}, ${task}`,
        `${cell.lengthTokens}`,
        cell.depth === null ? '–' : percent(cell.depth, 0),
        `${cell.questions}`,
        `${cell.exactCorrect}`,
        `${cell.correct}`,
        cell.klNats === null ? '–' : nats(cell.klNats),
      ]),
    ),
  );
  const heading = ['', 'tokens', 'depth', 'questions', 'exact right', 'also right', 'KL'];
  return sectionHtml(
    'tasks',
    titleOf(rows, tasks),
    text,
    charts +
      tasksTable([...rows, floor]) +
      tasks.map((task) => gridsHtml(task, rows)).join('') +
      detailsHtml('Every number, by length and depth', tableHtml(heading, cells)),
  );
}

/** Grids of the treatments that lose answers, and the names of those that lose none. */
function gridsHtml(task: string, rows: readonly EvaluationRow[]): string {
  const found = rows.flatMap((row) => {
    const figures = row.tasks?.[task];
    return figures === undefined || figures.exactCorrect === 0 || !hasGrid(figures.cells) ? [] : [{ row, figures }];
  });
  if (found.length === 0) return '';
  const keeps = found.filter(({ figures }) => figures.correct === figures.exactCorrect).map(({ row }) => row.treatment);
  const grids = found
    .filter(({ figures }) => figures.correct < figures.exactCorrect)
    .map(({ row, figures }) => needleChart(task, row.treatment, figures.cells));
  const words =
    (grids.length === 0
      ? ''
      : 'Answers kept where answers are lost: across, tokens of the prefix; down, how deep in it the fact stands. A dash: the exact cache does not know the answer. ') +
    (keeps.length === 0 ? '' : `Every answer is kept by ${list(keeps)}.`);
  return (
    `<h3 class="task">${escapeHtml(grids.length === 0 ? `${task}: no answer is lost` : `Where ${task} loses answers`)}</h3><p class="note">${escapeHtml(words)}</p>` +
    (grids.length === 0 ? '' : legendHtml(GRID_LEGEND) + chartsHtml(grids, 'grids'))
  );
}

/** The smallest file that still answers everything the exact cache answers. */
function titleOf(rows: readonly EvaluationRow[], tasks: readonly string[]): string {
  const kept = (row: EvaluationRow): boolean => {
    const accuracies = tasks.map((task) => row.tasks?.[task]?.accuracy).filter((value) => typeof value === 'number');
    return accuracies.length > 0 && accuracies.every((accuracy) => accuracy === 1);
  };
  const best = rows
    .filter(isPlainKvtc)
    .filter(kept)
    .toSorted((a, b) => (b.effectiveRatio ?? 0) - (a.effectiveRatio ?? 0))[0];
  const answered = tasks.filter((task) => (rows[0]?.tasks?.[task]?.exactCorrect ?? 0) > 0);
  const answers = answered.reduce((sum, task) => sum + (rows[0]?.tasks?.[task]?.exactCorrect ?? 0), 0);
  if (answers === 0) return 'The exact cache answers nothing';
  return best === undefined
    ? 'Every ratio loses some answers'
    : `${best.treatment} loses none of ${wholeNumber(answers)} answers on ${answered.length < 3 ? list(answered) : `${answered.length} tasks`}`;
}

function tasksTable(rows: readonly EvaluationRow[]): string {
  const lines = rows.flatMap((row) =>
    Object.entries(row.tasks ?? {}).map(([task, figures]) => {
      const { accuracy, leadingShare, klNats, logLikelihoodExact, logLikelihood } = figures;
      return [
        `${row.treatment}, ${task}`,
        `${figures.items}`,
        `${figures.questions}`,
        `${figures.exactCorrect}`,
        `${figures.correct}`,
        accuracy === null ? '–' : percent(accuracy, 1),
        leadingShare === null ? '–' : percent(leadingShare, 1),
        klNats === null ? '–' : nats(klNats),
        logLikelihoodExact === null ? '–' : logLikelihoodExact.toFixed(3),
        logLikelihood === null ? '–' : logLikelihood.toFixed(3),
        `${figures.gained}`,
      ];
    }),
  );
  const heading = [
    '',
    'items',
    'questions',
    'exact right',
    'also right',
    'kept',
    'leading tokens',
    'KL',
    'log p, exact',
    'log p',
    'gained',
  ];
  return detailsHtml('Every number, by task', tableHtml(heading, lines));
}
