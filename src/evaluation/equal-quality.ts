// How much smaller one codec's caches are than another's at the same loss: by log-log interpolation between measured
// rows, never beyond them. Does not know: how rows are measured or shown.

import { isPaperSeries, seriesNames, seriesOf } from './series.ts';
import type { EvaluationRow } from './summary.ts';

type Measure = 'klNats' | 'copyKlNats';
type Rate = 'paperRatio' | 'effectiveRatio';

/** Both losses must be no worse. */
const MEASURES = ['klNats', 'copyKlNats'] as const;
/** Losses of 0 have no logarithm. */
const LEAST_NATS = 1e-12;

/** A ratio read off measured rows; `atLeast` and `below` where it lies beyond all of them. */
export interface EqualRatio {
  readonly relation: 'equal' | 'atLeast' | 'below';
  readonly ratio: number;
}

/** What a series reaches at the losses of one row of the published codec. */
export interface EqualQuality {
  readonly series: string;
  readonly against: EvaluationRow;
  readonly paperRatio: EqualRatio;
  readonly effectiveRatio: EqualRatio;
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
      }));
    });
}

/** The ratio at which neither loss exceeds that of `against`. */
function ratioNoWorse(rows: readonly EvaluationRow[], against: EvaluationRow, rate: Rate): EqualRatio {
  const found = MEASURES.map((measure) => ratioWithin(pointsOf(rows, measure, rate), against[measure]));
  return found.reduce((least, one) => (rank(one) < rank(least) ? one : least));
}

/** `below` counts as less than any ratio; a bound from above as the ratio it names. */
function rank({ relation, ratio }: EqualRatio): number {
  return relation === 'below' ? 0 : ratio;
}

export interface LossPoint {
  readonly ratio: number;
  readonly loss: number;
}

function pointsOf(rows: readonly EvaluationRow[], measure: Measure, rate: Rate): LossPoint[] {
  return rows.flatMap((row) => {
    const ratio = row[rate];
    return ratio === null ? [] : [{ ratio, loss: row[measure] }];
  });
}

/**
 * The ratio up to which a measured curve stays within `limit`: where it first exceeds it, on a straight line between the
 * logarithms of the two points around. `atLeast` the largest where none exceeds it, `below` the smallest where that does.
 */
export function ratioWithin(points: readonly LossPoint[], limit: number): EqualRatio {
  const sorted = points.toSorted((a, b) => a.ratio - b.ratio);
  const above = sorted.findIndex(({ loss }) => !(loss <= limit));
  const upper = sorted[above];
  if (upper === undefined) return { relation: 'atLeast', ratio: sorted.at(-1)?.ratio ?? 0 };
  const lower = sorted[above - 1];
  if (lower === undefined) return { relation: 'below', ratio: upper.ratio };
  const log = (nats: number): number => Math.log(Math.max(nats, LEAST_NATS));
  const share = (log(limit) - log(lower.loss)) / (log(upper.loss) - log(lower.loss));
  return { relation: 'equal', ratio: lower.ratio * (upper.ratio / lower.ratio) ** share };
}

/** `39.2`, `> 120`, `< 7.1`. */
export function equalRatioText({ relation, ratio }: EqualRatio): string {
  const sign = { equal: '', atLeast: '> ', below: '< ' }[relation];
  return `${sign}${ratio.toFixed(1)}`;
}
