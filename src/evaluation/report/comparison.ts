// Who is smaller and closer to exact: points of rate and loss, rivals beaten and not, how far codecs lie apart, in words.
// Does not know: charts, tables.

import { ratioWithin } from '../../cache/loss-curve.ts';
import { isPaperSeries, seriesNames, seriesOf } from '../series.ts';
import type { EvaluationRow } from '../summary.ts';
import { shortNumber } from './chart.ts';
import { list } from './words.ts';

export type Measure = 'klNats' | 'copyKlNats';
export type Rate = 'effectiveRatio' | 'paperRatio';

/** A row of a codec of ours over its ratios. Such rows make lines. */
export function isPlainKvtc(row: EvaluationRow): boolean {
  return seriesOf(row) !== null;
}

/** Rows that were compressed and measured, with what is drawn of them. */
export interface RatePoint {
  readonly row: EvaluationRow;
  readonly ratio: number;
  readonly value: number;
}

export function pointsOf(
  rows: readonly EvaluationRow[],
  rate: Rate,
  valueOf: (row: EvaluationRow) => number | null | undefined,
): RatePoint[] {
  return rows.flatMap((row) => {
    const ratio = row[rate];
    const value = valueOf(row) ?? NaN;
    return ratio === null || !Number.isFinite(value) ? [] : [{ row, ratio, value }];
  });
}

/** Which rivals a row of ours, or of one series, beats on size and loss at once, which beat one, and which neither. */
export function comparison(
  rows: readonly EvaluationRow[],
  measure: Measure,
  rate: Rate = 'effectiveRatio',
  series?: string,
): { readonly beaten: readonly string[]; readonly beating: readonly string[]; readonly apart: readonly string[] } {
  const kvtc = rows.filter((row) => isPlainKvtc(row) && (series === undefined || seriesOf(row) === series));
  const rivals = rivalsOf(rows);
  const dominates = (a: EvaluationRow, b: EvaluationRow): boolean =>
    (a[rate] ?? 0) >= (b[rate] ?? 0) && a[measure] <= b[measure];
  const beaten = rivals.filter((rival) => kvtc.some((row) => dominates(row, rival)));
  const beating = rivals.filter((rival) => kvtc.some((row) => dominates(rival, row)));
  const apart = rivals.filter((rival) => !beaten.includes(rival) && !beating.includes(rival));
  const names = (found: readonly EvaluationRow[]): string[] => found.map(({ treatment }) => treatment);
  return { beaten: names(beaten), beating: names(beating), apart: names(apart) };
}

const OURS = /^(kvtc|wtc)\b/u;

/** Rows of other codecs that store something. */
export function rivalsOf(rows: readonly EvaluationRow[]): EvaluationRow[] {
  return rows.filter((row) => !OURS.test(row.treatment) && row.effectiveRatio !== null);
}

/** A row of a codec of ours with a setting changed. */
export function isVariant(row: EvaluationRow): boolean {
  return OURS.test(row.treatment) && !isPlainKvtc(row);
}

/** The row nearest the paper's 16x, of the published codec where it was measured; else the first row. */
export function mainRow(rows: readonly EvaluationRow[]): EvaluationRow | undefined {
  const distance = (row: EvaluationRow): number => Math.abs(Math.log2((row.ratio ?? 1) / 16));
  const [series] = seriesNames(rows).toSorted((a, b) => Number(isPaperSeries(b)) - Number(isPaperSeries(a)));
  const own = rows.filter((row) => series !== undefined && seriesOf(row) === series);
  return own.toSorted((a, b) => distance(a) - distance(b))[0] ?? rows[0];
}

/** What the chart shows, in words: how far the codecs lie apart, and how many rivals they beat. */
export function conclusion(rows: readonly EvaluationRow[], measure: Measure, rate: Rate): string {
  const names = seriesNames(rows);
  const against = mainRow(rows);
  const size = against?.[rate] ?? null;
  const codecs = names
    .filter((name) => against !== undefined && size !== null && name !== seriesOf(against))
    .map((name) => {
      const own = pointsOf(
        rows.filter((row) => seriesOf(row) === name),
        rate,
        (row) => row[measure],
      ).map(({ ratio, value }) => ({ ratio, loss: value }));
      const { relation, ratio } = ratioWithin(own, against?.[measure] ?? 0);
      const factor = ratio / (size ?? 1);
      if (relation === 'below') return `${name} does not come as close to exact as ${against?.treatment}.`;
      const far = `${relation === 'atLeast' ? 'more than ' : ''}${shortNumber(factor >= 1 ? factor : 1 / factor)} times`;
      return factor >= 1 || relation === 'equal'
        ? `At the loss of ${against?.treatment}, ${name} is ${far} ${factor >= 1 ? 'smaller still' : 'larger'}.`
        : '';
    });
  const { beaten, beating, apart } = comparison(rows, measure, rate);
  const rivals = beaten.length + beating.length + apart.length;
  return [
    ...codecs,
    rivals === 0
      ? ''
      : `Of ${rivals} ${rivals === 1 ? 'rival' : 'rivals'}, ${beaten.length} ${beaten.length === 1 ? 'is' : 'are'} larger and further from exact than a point of a line.`,
    beating.length === 0 ? '' : `Smaller and closer than such a point: ${list(beating)}.`,
  ]
    .filter((sentence) => sentence !== '')
    .join(' ');
}
