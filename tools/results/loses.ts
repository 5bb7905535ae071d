// Where the numbers speak against our codecs, computed from them, run by run. Does not know: how anything was measured.

import type { Evaluation } from '../../src/evaluation/evaluate.ts';
import { equalQuality, equalQualityByKind, equalRatioText } from '../../src/evaluation/equal-quality.ts';
import { comparison } from '../../src/evaluation/report/comparison.ts';
import { seriesNames, seriesOf } from '../../src/evaluation/series.ts';
import type { EvaluationRow } from '../../src/evaluation/summary.ts';
import type { NamedResult } from './read.ts';
import { nats, runTitle } from './words.ts';

/** A list with its heading, run by run; empty where nothing speaks against us. */
export function losesText(evaluations: readonly NamedResult<Evaluation>[]): string {
  const lines = evaluations.flatMap(({ file, result }) => {
    const found = losses(result.rows);
    return found.length === 0 ? [] : [`* ${runTitle(file)}:`, ...found.map((line) => `  * ${line}.`)];
  });
  const short = windowText(evaluations);
  if (short !== '') lines.unshift(short);
  return lines.length === 0 ? '' : `### Where kvtc loses\n\n${lines.join('\n')}\n`;
}

/** Where an exact window makes a file of ours more than twice as large as the paper's count has it: the worst row of all. */
function windowText(evaluations: readonly NamedResult<Evaluation>[]): string {
  const shares = evaluations.flatMap(({ result: { rows, settings } }) =>
    rows.flatMap((row) => {
      const { treatment, paperRatio, effectiveRatio } = row;
      if (seriesOf(row) === null || paperRatio === null || effectiveRatio === null) return [];
      const text = `at ${settings.prefixTokens} tokens ${treatment} stores ${effectiveRatio.toFixed(1)} times less, not ${paperRatio.toFixed(1)}`;
      return [{ share: paperRatio / effectiveRatio, text }];
    }),
  );
  const [worst] = shares.toSorted((a, b) => b.share - a.share);
  return worst === undefined || worst.share <= 2
    ? ''
    : `* An exact window eats most of the high ratios: ${worst.text}.`;
}

function losses(rows: readonly EvaluationRow[]): string[] {
  const others = rows.filter((row) => seriesOf(row) === null);
  const curves = seriesNames(rows).map((series) => rows.filter((row) => seriesOf(row) === series));
  const weak = rows.filter((row) => seriesOf(row) !== null && row.copyKlNats > 3 * row.klNats);
  const lost = curves.flat().flatMap((row) =>
    Object.entries(row.tasks ?? {})
      .filter(([, { exactCorrect, correct }]) => exactCorrect > 0 && correct < 0.95 * exactCorrect)
      .map(([task, { exactCorrect, correct }]) => `${task} at ${row.treatment} (${correct} of ${exactCorrect})`),
  );
  return [
    ...seriesNames(rows).flatMap((series, i) => lossesToOthers(series, curves[i] ?? [], others)),
    weak.length === 0
      ? ''
      : `copying suffers more than prediction, over three times the KL, at ${weak.map(({ treatment }) => treatment).join(', ')}`,
    lost.length === 0 ? '' : `answers are lost: ${lost.join(', ')}`,
    ...lossesByKind(rows),
  ].filter((line) => line !== '');
}

/** Share of the ratio at equal loss on all documents, below which a kind of text is told of. */
const POOR_KIND = 2 / 3;

/** Kinds of text on which our codec gains much less over the published one than on all documents together. */
function lossesByKind(rows: readonly EvaluationRow[]): string[] {
  const all = equalQuality(rows);
  return [...equalQualityByKind(rows)].flatMap(([kind, found]) => {
    const poor = found.flatMap(({ series, against, effectiveRatio }, i) => {
      const together = all[i]?.effectiveRatio;
      if (together === undefined || together.relation === 'below') return [];
      if (effectiveRatio.relation !== 'below' && effectiveRatio.ratio >= POOR_KIND * together.ratio) return [];
      const whole = `${equalRatioText(effectiveRatio)} of ${series} is as good as ${against.treatment}`;
      return [`${whole} (${equalRatioText(together)} on all documents)`];
    });
    return poor.length === 0 ? [] : [`on ${kind} text ${poor.join(', ')}`];
  });
}

/** What codecs of others do better than one curve of ours. */
function lossesToOthers(series: string, curve: readonly EvaluationRow[], others: readonly EvaluationRow[]): string[] {
  const least = Math.min(...curve.map(({ effectiveRatio }) => effectiveRatio ?? Infinity));
  const finest = curve.toSorted((a, b) => a.klNats - b.klNats)[0];
  const closer = others.filter((row) => finest !== undefined && row.klNats < finest.klNats);
  const beaten = (['klNats', 'copyKlNats'] as const).flatMap((measure) => {
    const { beating } = comparison([...curve, ...others], measure);
    const what = measure === 'klNats' ? 'prediction' : 'copying';
    return beating.length === 0
      ? []
      : [`${beating.join(', ')}: smaller and closer in ${what} than some ratio of ${series}`];
  });
  if (closer.length === 0 || finest === undefined) return beaten;
  const names = closer.map(({ treatment }) => treatment).join(', ');
  return [
    ...beaten,
    `${names} ${closer.length === 1 ? 'is' : 'are'} closer to exact than any ratio measured (the closest, ${finest.treatment}, is ${least.toFixed(2)} times smaller and costs ${nats(finest.klNats)})`,
  ];
}
