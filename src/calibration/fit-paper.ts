// Moments and held-out rows of a stream → what a profile of the paper's codec holds of it (paper §3.1-3.2, B.1).
// Does not know: where rows come from, files.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { layerWidth } from '../base/geometry.ts';
import { allocateBits, planBits, ratioBudgetBits } from '../codec/paper/allocation.ts';
import { measureErrors } from '../codec/paper/error-tables.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { ModelIdentity, StreamBasis } from '../profile/profile.ts';
import { fitBasis } from './basis.ts';
import type { HeldOutRows } from './held-out.ts';
import { projectRows } from './held-out.ts';
import { fitLayerGroups } from './layer-groups.ts';
import type { Moments } from './moments.ts';

export interface PaperFitOptions extends RunOptions {
  readonly model: ModelIdentity;
  readonly backend: Backend;
  readonly layersPerBasis?: number | undefined;
}

export interface PlannedStream {
  readonly plan: PaperPlan;
  readonly error: number;
}

export interface PaperStreamFit {
  readonly basis: StreamBasis;
  readonly plans: readonly PlannedStream[];
  readonly basisMs: number;
  readonly planMs: number;
}

/** One stream of a paper profile: basis, and a plan for each ratio. Throws KVTC_CALIBRATION_TEXT_SHORT. */
export async function fitPaperStream(
  stream: StreamKind,
  moments: Moments,
  held: HeldOutRows,
  setting: { readonly rank: number; readonly ratios: readonly number[]; readonly seed: number },
  { backend, signal, onEvent, layersPerBasis, model }: PaperFitOptions,
): Promise<PaperStreamFit> {
  const startedMs = performance.now();
  const basisOptions = { rank: setting.rank, seed: setting.seed, backend, signal, onEvent };
  const fitted = await (layersPerBasis === undefined
    ? fitBasis(moments, basisOptions)
    : fitLayerGroups(moments, layersPerBasis * layerWidth(model.geometry, stream), basisOptions));
  const basisMs = performance.now() - startedMs;
  // Few rows or narrow models can leave a ragged rank; groups start at multiples of 16 (R4).
  const rank = fitted.rank - (fitted.rank % RANK_STEP);
  if (rank === 0) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `the ${stream} rows span ${fitted.rank} directions; at least ${RANK_STEP} are needed`,
      { stream, rank: fitted.rank },
    );
  }
  const { mean, basis: rows } = fitted;
  const { coefficients, energy } = await projectRows(held[stream], held.rowCount, mean, rows, rank, backend);
  const inside = coefficients.reduce((sum, value) => sum + value * value, 0);
  const outsideEnergy = Math.max(0, (energy - inside) / held.rowCount);
  const tables = measureErrors(coefficients, held.rowCount, rank, { outsideEnergy });
  const width = fitted.mean.length;
  const largestBudget = ratioBudgetBits(width, Math.min(...setting.ratios));
  const allocation = allocateBits(tables, largestBudget);
  const plans = setting.ratios.map((ratio) => {
    const { plan, relativeError } = planBits(allocation, ratioBudgetBits(width, ratio));
    return { plan, error: relativeError };
  });
  onEvent?.({ type: 'progress', phase: 'plan', done: stream === 'key' ? 1 : 2, total: 2, unit: 'streams' });
  const basis: StreamBasis = {
    mean: fitted.mean,
    variances: fitted.variances.slice(0, rank),
    basis: denseMatrix(fitted.basis, rank, width),
  };
  return { basis, plans, basisMs, planMs: performance.now() - startedMs - basisMs };
}
