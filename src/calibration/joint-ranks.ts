// How two streams share the components that a profile may hold. Does not know bases, files.

import type { StreamKind } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';

/**
 * How many components of each stream are among the `total` largest of both, those of values taken `valueOffset` finer;
 * multiples of RANK_STEP, at least one.
 */
export function jointRanks(
  key: Int16Array,
  value: Int16Array,
  valueOffset: number,
  total: number,
): Record<StreamKind, number> {
  const rank = { key: 0, value: 0 };
  const next = (scales: Int16Array, at: number): number => scales[at] ?? -Infinity;
  while (rank.key + rank.value < total) {
    const [a, b] = [next(key, rank.key), next(value, rank.value) - valueOffset];
    if (a === -Infinity && b === -Infinity) break;
    rank[a >= b ? 'key' : 'value'] += RANK_STEP;
  }
  return {
    key: Math.min(key.length, Math.max(rank.key, RANK_STEP)),
    value: Math.min(value.length, Math.max(rank.value, RANK_STEP)),
  };
}
