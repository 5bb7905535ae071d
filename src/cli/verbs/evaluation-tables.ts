// Tables of an evaluation's tasks. Does not know: how anything was measured.

import type { EvaluationRow } from '../../evaluation/summary.ts';
import { formatPercent, formatSmall, table } from '../format.ts';

/** A table per task, after an empty line each; nothing without tasks. */
export function evaluationTasksText(rows: readonly EvaluationRow[]): string[] {
  const names = [...new Set(rows.flatMap(({ tasks = {} }) => Object.keys(tasks)))];
  return names.flatMap((name) => {
    const first = rows.find(({ tasks }) => tasks?.[name] !== undefined)?.tasks?.[name];
    if (first === undefined) return [];
    const solved = `the exact cache answers ${first.exactCorrect} of ${first.questions} questions`;
    const lines = rows.flatMap(({ treatment, tasks }) => {
      const figures = tasks?.[name];
      if (figures === undefined) return [];
      const { accuracy, correct, klNats, leadingShare, logLikelihood, logLikelihoodExact } = figures;
      return [
        [
          treatment,
          `${correct}`,
          accuracy === null ? '-' : formatPercent(accuracy),
          leadingShare === null ? '-' : formatPercent(leadingShare),
          klNats === null ? '-' : formatSmall(klNats),
          logLikelihoodExact === null ? '-' : logLikelihoodExact.toFixed(3),
          logLikelihood === null ? '-' : logLikelihood.toFixed(3),
        ],
      ];
    });
    const heading = ['', 'right', 'of those', 'leading', 'KL', 'log p exact', 'log p'];
    return [
      '',
      `task ${name}: ${solved}`,
      table(lines, ['left', ...heading.slice(1).map(() => 'right' as const)], heading),
    ];
  });
}
