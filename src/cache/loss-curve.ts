// Loss against ratio between measured points: straight lines in the logarithms of both, and nothing beyond the points.
// Does not know: what was measured, profiles, codecs.

export interface LossPoint {
  readonly ratio: number;
  readonly loss: number;
}

/** A ratio read off measured points; `atLeast` and `below` where it lies beyond all of them. */
export interface ReadRatio {
  readonly relation: 'equal' | 'atLeast' | 'below';
  readonly ratio: number;
}

/** Losses of 0 have no logarithm. */
const LEAST_LOSS = 1e-12;

function log(loss: number): number {
  return Math.log(Math.max(loss, LEAST_LOSS));
}

/**
 * The ratio up to which a measured curve stays within `limit`: where it first exceeds it, between the two points around.
 * `atLeast` the largest ratio where none exceeds it, `below` the smallest where that does. Points in any order, at least
 * one.
 */
export function ratioWithin(points: readonly LossPoint[], limit: number): ReadRatio {
  const sorted = points.toSorted((a, b) => a.ratio - b.ratio);
  const above = sorted.findIndex(({ loss }) => !(loss <= limit));
  const upper = sorted[above];
  if (upper === undefined) return { relation: 'atLeast', ratio: sorted.at(-1)?.ratio ?? 0 };
  const lower = sorted[above - 1];
  if (lower === undefined) return { relation: 'below', ratio: upper.ratio };
  const share = (log(limit) - log(lower.loss)) / (log(upper.loss) - log(lower.loss));
  return { relation: 'equal', ratio: lower.ratio * (upper.ratio / lower.ratio) ** share };
}

/** The loss at a ratio that was measured or lies between measured ones; null beyond them. */
export function lossAt(points: readonly LossPoint[], ratio: number): number | null {
  const sorted = points.toSorted((a, b) => a.ratio - b.ratio);
  const upper = sorted.find((point) => point.ratio >= ratio);
  const lower = sorted.findLast((point) => point.ratio <= ratio);
  if (upper === undefined || lower === undefined) return null;
  if (upper.ratio === lower.ratio) return upper.loss;
  const share = Math.log(ratio / lower.ratio) / Math.log(upper.ratio / lower.ratio);
  return Math.exp(log(lower.loss) + share * (log(upper.loss) - log(lower.loss)));
}
