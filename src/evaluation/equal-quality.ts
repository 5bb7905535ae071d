// How much smaller one codec's caches are than another's at the same loss: by log-log interpolation between measured
// rows, never beyond them. Does not know: how rows are measured or shown.

import type { LossPoint, ReadRatio } from '../cache/loss-curve.ts';
import { ratioWithin } from '../cache/loss-curve.ts';
import { isPaperSeries, seriesNames, seriesOf } from './series.ts';
import type { EvaluationRow } from './summary.ts';

type Measure = 'klNats' | 'copyKlNats';
type Rate = 'paperRatio' | 'effectiveRatio';

/** Both losses must be no worse. */
const MEASURES = ['klNats', 'copyKlNats'] as const;
/** The task of key-value retrieval: what high ratios lose first. */
const RETRIEVAL = 'kv';

/** What a series reaches at the losses of one row of the published codec. */
export interface EqualQuality {
  readonly series: string;
  readonly against: EvaluationRow;
  readonly paperRatio: ReadRatio;
  readonly effectiveRatio: ReadRatio;
  /**
   * By the paper's count, the largest measured ratio up to which no fewer answers of the retrieval task are kept; never
   * read between rows, since answers are few. Null where that task was not run, or the exact cache answers none of it.
   */
  readonly retrievalRatio: ReadRatio | null;
}

/** Every series but the published codec's, at the losses of each of its rows, in their order. Empty without both. */
export function equalQuality(rows: readonly EvaluationRow[]): EqualQuality[] {
  const names = seriesNames(rows);
  const reference = names.find(isPaperSeries);
  const paper = rows.filter((row) => reference !== undefined && seriesOf(row) === reference);
  return names
    .filter((name) => !isPaperSeries(name))
    .flatMap((series) => {
      const own = rows.filter((row) => seriesOf(row) === series);
      return paper.map((against) => ({
        series,
        against,
        paperRatio: ratioNoWorse(own, against, 'paperRatio'),
        effectiveRatio: ratioNoWorse(own, against, 'effectiveRatio'),
        retrievalRatio: retrievalNoWorse(own, against),
      }));
    });
}

/** The same on the documents of each kind of text alone, by kind; empty where there is but one kind. */
export function equalQualityByKind(rows: readonly EvaluationRow[]): ReadonlyMap<string, EqualQuality[]> {
  const kinds = Object.keys(rows[0]?.byKind ?? {});
  if (kinds.length < 2) return new Map();
  return new Map(kinds.map((kind) => [kind, equalQuality(rows.map((row) => ({ ...row, ...row.byKind[kind] })))]));
}

/** The ratio at which neither loss exceeds that of `against`. */
function ratioNoWorse(rows: readonly EvaluationRow[], against: EvaluationRow, rate: Rate): ReadRatio {
  const found = MEASURES.map((measure) => ratioWithin(pointsOf(rows, measure, rate), against[measure]));
  return found.reduce((least, one) => (rank(one) < rank(least) ? one : least));
}

function retrievalNoWorse(rows: readonly EvaluationRow[], against: EvaluationRow): ReadRatio | null {
  const figures = against.tasks?.[RETRIEVAL];
  if (figures === undefined || figures.exactCorrect === 0) return null;
  const wanted = figures.correct;
  const measured = rows
    .flatMap(({ paperRatio, tasks }) => {
      const kept = tasks?.[RETRIEVAL]?.correct;
      return paperRatio === null || kept === undefined ? [] : [{ ratio: paperRatio, kept }];
    })
    .toSorted((a, b) => a.ratio - b.ratio);
  const worse = measured.findIndex(({ kept }) => kept < wanted);
  const [first, last, best] = [measured[0], measured.at(-1), measured[worse - 1]];
  if (first === undefined || last === undefined) return null;
  if (worse < 0) return { relation: 'atLeast', ratio: last.ratio };
  return best === undefined ? { relation: 'below', ratio: first.ratio } : { relation: 'equal', ratio: best.ratio };
}

/** `below` counts as less than any ratio; a bound from above as the ratio it names. */
function rank({ relation, ratio }: ReadRatio): number {
  return relation === 'below' ? 0 : ratio;
}

function pointsOf(rows: readonly EvaluationRow[], measure: Measure, rate: Rate): LossPoint[] {
  return rows.flatMap((row) => {
    const ratio = row[rate];
    return ratio === null ? [] : [{ ratio, loss: row[measure] }];
  });
}

/** `39.2`, `> 120`, `< 7.1`. */
export function equalRatioText({ relation, ratio }: ReadRatio): string {
  const sign = { equal: '', atLeast: '> ', below: '< ' }[relation];
  return `${sign}${ratio.toFixed(1)}`;
}
