// A basis that joins only some adjacent layers at a time: the covariance between groups of layers is taken as zero.
// Such a basis costs less to apply and less rate can be saved with it. Does not know: where moments come from, plans.

import { invariant } from '../base/errors.ts';
import type { BasisOptions, FittedBasis } from './basis.ts';
import { fitBasis } from './basis.ts';
import type { Moments } from './moments.ts';
import { triangleSize } from '../linalg/dense.ts';
import { meanOf } from './moments.ts';

/**
 * Fits a basis to each group of `groupWidth` adjacent features (the last may be narrower) and puts all components in one
 * order of falling variance: f32[rank, width], zero outside their own group; one group is `fitBasis`. Orthonormal as a whole, because groups do not
 * overlap. A profile holds it like any other. Throws what fitBasis throws.
 */
export async function fitLayerGroups(
  moments: Moments,
  groupWidth: number,
  options: BasisOptions,
): Promise<FittedBasis> {
  const { width } = moments.frame;
  invariant(Number.isSafeInteger(groupWidth) && groupWidth > 0, `groups of ${groupWidth} features`);
  if (groupWidth >= width) return fitBasis(moments, options);
  const components: { readonly start: number; readonly values: Float32Array; readonly variance: number }[] = [];
  const fits: FittedBasis[] = [];
  for (let start = 0; start < width; start += groupWidth) {
    const own = Math.min(groupWidth, width - start);
    const fitted = await fitBasis(momentsOf(moments, start, own), {
      ...options,
      rank: Math.min(options.rank, own, moments.rows - 1),
    });
    fits.push(fitted);
    for (let i = 0; i < fitted.rank; i++) {
      const values = fitted.basis.subarray(i * own, (i + 1) * own);
      components.push({ start, values, variance: fitted.variances[i] ?? 0 });
    }
  }
  const kept = components.toSorted((a, b) => b.variance - a.variance).slice(0, options.rank);
  const basis = new Float32Array(kept.length * width);
  for (const [i, { start, values }] of kept.entries()) basis.set(values, i * width + start);
  return {
    rank: kept.length,
    mean: meanOf(moments),
    basis,
    variances: Float32Array.from(kept, ({ variance }) => variance),
    totalEnergy: fits.reduce((sum, { totalEnergy }) => sum + totalEnergy, 0),
    iterations: Math.max(...fits.map(({ iterations }) => iterations)),
    lastGain: Math.max(...fits.map(({ lastGain }) => lastGain)),
    converged: fits.every(({ converged }) => converged),
  };
}

/** The moments of `count` adjacent features alone. */
function momentsOf({ frame, rows, sums, products }: Moments, start: number, count: number): Moments {
  const own = new Float64Array(triangleSize(count));
  for (let i = 0; i < count; i++) {
    const from = triangleSize(start + i) + start;
    own.set(products.subarray(from, from + i + 1), triangleSize(i));
  }
  return {
    frame: {
      key: frame.key,
      width: count,
      shift: frame.shift.slice(start, start + count),
      exponents: frame.exponents.slice(start, start + count),
    },
    rows,
    sums: sums.slice(start, start + count),
    products: own,
  };
}
