// Where the numbers speak against our codecs, computed from them, codec by codec. Does not know: how anything was measured.

import type { Evaluation } from '../../src/evaluation/evaluate.ts';
import { comparison } from '../../src/evaluation/report/comparison.ts';
import { seriesNames, seriesOf } from '../../src/evaluation/series.ts';
import type { EvaluationRow } from '../../src/evaluation/summary.ts';
import { nats } from './words.ts';

/** A list with its heading; empty where nothing speaks against us. */
export function losesText(evaluations: readonly Evaluation[]): string {
  const lines = evaluations.flatMap(({ rows, settings }) => {
    const weights = settings.weights === 'as-is' ? 'weights as published' : `weights in ${settings.weights}`;
    const alone = rows.filter((row) => seriesOf(row) === null);
    return seriesNames(rows).flatMap((series) =>
      losses(
        series,
        rows.filter((row) => seriesOf(row) === series),
        alone,
        settings.prefixTokens,
      ).map((line) => `* ${line} (${weights}).`),
    );
  });
  return lines.length === 0 ? '' : `### Where kvtc loses\n\n${lines.join('\n')}\n`;
}

function losses(
  series: string,
  plain: readonly EvaluationRow[],
  others: readonly EvaluationRow[],
  prefixTokens: number,
): string[] {
  const least = Math.min(...plain.map(({ effectiveRatio }) => effectiveRatio ?? Infinity));
  const finest = plain.toSorted((a, b) => a.klNats - b.klNats)[0];
  const closer = others.filter((row) => finest !== undefined && row.klNats < finest.klNats);
  const lost = plain.flatMap((row) =>
    Object.entries(row.tasks ?? {})
      .filter(([, { exactCorrect, correct }]) => exactCorrect > 0 && correct < 0.95 * exactCorrect)
      .map(([task, { exactCorrect, correct }]) => `${task} at ${row.treatment} (${correct} of ${exactCorrect})`),
  );
  const weak = plain.filter((row) => row.copyKlNats > 3 * row.klNats).map((row) => row.treatment);
  const short = plain.at(-1);
  const { paperRatio = null, effectiveRatio = null } = short ?? {};
  return [
    ...(['klNats', 'copyKlNats'] as const).map((measure) => {
      const { beating } = comparison([...plain, ...others], measure);
      const what = measure === 'klNats' ? 'prediction' : 'copying';
      return beating.length === 0
        ? ''
        : `${beating.join(', ')}: smaller and closer in ${what} than some ratio of ${series}`;
    }),
    closer.length === 0 || finest === undefined
      ? ''
      : `${closer.map(({ treatment }) => treatment).join(', ')} ${closer.length === 1 ? 'is' : 'are'} closer to exact than any ratio measured (the closest, ${finest.treatment}, is ${least.toFixed(2)} times smaller and costs ${nats(finest.klNats)})`,
    weak.length === 0 ? '' : `copying suffers more than prediction at ${weak.join(', ')}: over three times the KL`,
    lost.length === 0 ? '' : `answers are lost: ${lost.join(', ')}`,
    short !== undefined && paperRatio !== null && effectiveRatio !== null && paperRatio > 2 * effectiveRatio
      ? `at ${prefixTokens} tokens the exact window eats most of the high ratios: ${short.treatment} stores ${effectiveRatio.toFixed(1)} times less, not ${paperRatio.toFixed(1)}`
      : '',
  ].filter((line) => line !== '');
}
