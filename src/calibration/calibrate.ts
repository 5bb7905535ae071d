// Texts of a model, as token documents → a profile: moments, bases, plans for a list of ratios (paper §3.1-3.2, B.1).
// Does not know: engines (rows come through a function), where texts come from.

import { rm } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, layerWidth, streamWidth } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { allocateBits, planBits, ratioBudgetBits } from '../codec/paper/allocation.ts';
import { measureErrors } from '../codec/paper/error-tables.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import type { Backend } from '../linalg/backend.ts';
import type { ModelIdentity, RatioPlans, StreamBasis } from '../profile/profile.ts';
import { writeProfile } from '../profile/write-profile.ts';
import type { FittedBasis } from './basis.ts';
import { fitBasis } from './basis.ts';
import type { Collected, RowSource } from './collect.ts';
import { collectMoments } from './collect.ts';
import { fitLayerGroups } from './layer-groups.ts';
import type { TokenDocument } from './sample.ts';

/** Rank 2 048 serves 16x and above at p ≤ 7 168; 8x wants about 0.55 p. Sinks as the paper (§3.1). */
export const CALIBRATION_DEFAULTS = {
  rank: 2048,
  ratios: [8, 16, 32, 64],
  sinks: 4,
  seed: 7,
  /** Rows that plan the bits, never part of the moments. */
  heldOutRows: 2048,
  /** Share of the documents the held-out rows are drawn from. */
  heldOutShare: 1 / 12,
} as const;

export interface CalibrateOptions extends RunOptions {
  readonly model: ModelIdentity;
  readonly documents: readonly TokenDocument[];
  readonly rows: RowSource;
  readonly backend: Backend;
  /** The profile to write. */
  readonly output: string;
  readonly producer: string;
  readonly rank?: number | undefined;
  readonly ratios?: readonly number[] | undefined;
  readonly seed?: number | undefined;
  readonly sinks?: number | undefined;
  /** Where unfinished work lives; default `output + '.work'`. Deleted when the profile is written. */
  readonly workDirectory?: string | undefined;
  /** Collect only this share and stop before the fit: the work directory is the result. */
  readonly part?: { readonly index: number; readonly count: number } | undefined;
  /** Work directories of partial runs to add; only documents in none of them are run here. */
  readonly parts?: readonly string[] | undefined;
  /** Layers that one basis joins; default: all. For comparisons: fewer cost rate (docs/results.md). */
  readonly layersPerBasis?: number | undefined;
  /** Keeps the work directory, so that another calibration on the same rows collects nothing. Default false. */
  readonly keepWork?: boolean | undefined;
}

export interface CalibrationResult {
  /** Null for a partial run. */
  readonly profileId: string | null;
  /** The profile, or the work directory of a partial run. */
  readonly path: string;
  readonly rows: number;
  readonly heldOutRows: number;
  readonly rank: Readonly<Record<StreamKind, number>>;
  readonly plans: readonly RatioPlans[];
  /** Wall time by phase; `collectMs` contains the engine's prefill. */
  readonly elapsedMs: { readonly collect: number; readonly basis: number; readonly plan: number };
}

/**
 * Learns a profile and writes it. One in twelve documents is held out and plans the bits; the others make the moments.
 * Interrupted runs resume from the work directory. Same documents, settings and backend → same bytes.
 * Throws KVTC_CALIBRATION_TEXT_SHORT when fewer than two documents or 256 rows are there, KVTC_ROWS_NOT_FINITE,
 * KVTC_MOMENTS_MISMATCH for a foreign work directory, KVTC_OPTION_INVALID, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function calibrateDocuments(options: CalibrateOptions): Promise<CalibrationResult> {
  const { model, documents, backend, output, signal, onEvent } = options;
  const setting = {
    rank: options.rank ?? CALIBRATION_DEFAULTS.rank,
    ratios: [...(options.ratios ?? CALIBRATION_DEFAULTS.ratios)].toSorted((a, b) => a - b),
    seed: options.seed ?? CALIBRATION_DEFAULTS.seed,
    sinks: options.sinks ?? CALIBRATION_DEFAULTS.sinks,
  };
  checkSetting(setting);
  const { fitting, heldOut } = splitDocuments(documents);
  const workDirectory = options.workDirectory ?? `${output}.work`;
  const key = calibrationKey(model, fitting, setting.sinks);
  const startedMs = performance.now();
  const collected = await collectMoments({
    documents: fitting,
    rows: options.rows,
    geometry: model.geometry,
    key,
    backend,
    workDirectory,
    part: options.part,
    parts: options.parts,
    signal,
    onEvent,
  });
  const partial = { profileId: null, path: workDirectory, heldOutRows: 0, rank: { key: 0, value: 0 }, plans: [] };
  if (options.part !== undefined && options.part.count > 1) {
    const elapsedMs = { collect: performance.now() - startedMs, basis: 0, plan: 0 };
    return { ...partial, rows: collected.moments.key.rows, elapsedMs };
  }
  const held = await collectHeldOut(options, heldOut, setting.seed);
  const rows = collected.moments.key.rows;
  if (rows < 256) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `${rows} rows are too few to fit a basis; at least 256 are needed`,
      { rows },
    );
  }
  const collectMs = performance.now() - startedMs;
  const fits: Partial<Record<StreamKind, StreamFit>> = {};
  for (const stream of STREAMS) {
    fits[stream] = await fitStream(stream, collected, held, setting, options);
  }
  const { key: keyFit, value: valueFit } = fits as Record<StreamKind, StreamFit>;
  throwIfAborted(signal);
  const plans = setting.ratios.map((ratio, index) => ({
    ratio,
    key: (keyFit.plans[index] as PlannedStream).plan,
    value: (valueFit.plans[index] as PlannedStream).plan,
    keyError: (keyFit.plans[index] as PlannedStream).error,
    valueError: (valueFit.plans[index] as PlannedStream).error,
  }));
  const profileId = await writeProfile(output, {
    model,
    streams: { key: keyFit.basis, value: valueFit.basis },
    plans,
    provenance: {
      seed: setting.seed,
      rows,
      heldOutRows: held.rowCount,
      sinks: setting.sinks,
      documents: documents.map(({ source, sha256, tokens }) => ({
        source: source.slice(0, 4096),
        sha256,
        tokens: tokens.length,
      })),
      producer: options.producer,
    },
    quality: [],
  });
  if (options.keepWork !== true) await rm(workDirectory, { recursive: true, force: true });
  onEvent?.({ type: 'progress', phase: 'plan', done: 2, total: 2, unit: 'streams' });
  return {
    profileId,
    path: output,
    rows,
    heldOutRows: held.rowCount,
    rank: { key: keyFit.basis.basis.rows, value: valueFit.basis.basis.rows },
    plans,
    elapsedMs: { collect: collectMs, basis: keyFit.basisMs + valueFit.basisMs, plan: keyFit.planMs + valueFit.planMs },
  };
}

interface PlannedStream {
  readonly plan: PaperPlan;
  readonly error: number;
}

interface StreamFit {
  readonly basis: StreamBasis;
  readonly plans: readonly PlannedStream[];
  readonly basisMs: number;
  readonly planMs: number;
}

interface HeldOutRows {
  readonly rowCount: number;
  readonly key: Float32Array;
  readonly value: Float32Array;
}

async function fitStream(
  stream: StreamKind,
  collected: Collected,
  held: HeldOutRows,
  setting: { readonly rank: number; readonly ratios: readonly number[]; readonly seed: number },
  { backend, signal, onEvent, layersPerBasis, model }: CalibrateOptions,
): Promise<StreamFit> {
  const startedMs = performance.now();
  const moments = collected.moments[stream];
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
  const { coefficients, outsideEnergy } = await projectHeldOut(held, stream, fitted, rank, backend);
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
    basis: {
      rows: rank,
      columns: width,
      read: (start, end, out) => {
        out.set(fitted.basis.subarray(start * width, end * width));
        return Promise.resolve();
      },
    },
  };
  return { basis, plans, basisMs, planMs: performance.now() - startedMs - basisMs };
}

/** Coefficients f32[rows, rank] of the held-out rows, and the mean energy per row that the basis does not reach. */
async function projectHeldOut(
  held: HeldOutRows,
  stream: StreamKind,
  { mean, basis }: FittedBasis,
  rank: number,
  backend: Backend,
): Promise<{ coefficients: Float32Array; outsideEnergy: number }> {
  const width = mean.length;
  const centred = held[stream].slice();
  let energy = 0;
  for (let r = 0, at = 0; r < held.rowCount; r++) {
    for (let c = 0; c < width; c++, at++) {
      const value = (centred[at] as number) - (mean[c] as number);
      centred[at] = value;
      energy += value * value;
    }
  }
  const matrix = await backend.prepareMatrix(
    {
      rows: rank,
      columns: width,
      read: (start, end, out) => {
        out.set(basis.subarray(start * width, end * width));
        return Promise.resolve();
      },
    },
    'f32',
  );
  const coefficients = new Float32Array(held.rowCount * rank);
  try {
    await matrix.multiply(centred, held.rowCount, coefficients);
  } finally {
    matrix.close();
  }
  let inside = 0;
  for (const value of coefficients) inside += value * value;
  return { coefficients, outsideEnergy: Math.max(0, (energy - inside) / held.rowCount) };
}

/** Rows spread evenly over the held-out documents, at most heldOutRows in all. */
async function collectHeldOut(
  options: CalibrateOptions,
  documents: readonly TokenDocument[],
  seed: number,
): Promise<HeldOutRows> {
  const { geometry } = options.model;
  const widths = { key: streamWidth(geometry, 'key'), value: streamWidth(geometry, 'value') };
  const perDocument = Math.ceil(CALIBRATION_DEFAULTS.heldOutRows / documents.length);
  const taken: { rowCount: number; key: Float32Array; value: Float32Array }[] = [];
  for (const [index, document] of documents.entries()) {
    throwIfAborted(options.signal);
    const rows = await options.rows(document, options);
    const count = Math.min(perDocument, rows.rowCount);
    const random = seededRandom(seed + index);
    const chosen = Array.from({ length: count }, (_, i) =>
      Math.min(rows.rowCount - 1, Math.floor(((i + random.uniform()) * rows.rowCount) / count)),
    );
    const pick = (stream: StreamKind): Float32Array => {
      const width = widths[stream];
      const out = new Float32Array(count * width);
      for (const [to, from] of chosen.entries())
        out.set(rows[stream].subarray(from * width, (from + 1) * width), to * width);
      return out;
    };
    taken.push({ rowCount: count, key: pick('key'), value: pick('value') });
    options.onEvent?.({
      type: 'progress',
      phase: 'held-out',
      done: index + 1,
      total: documents.length,
      unit: 'documents',
    });
  }
  const rowCount = taken.reduce((sum, part) => sum + part.rowCount, 0);
  const join = (stream: StreamKind): Float32Array => {
    const out = new Float32Array(rowCount * widths[stream]);
    let at = 0;
    for (const part of taken) {
      out.set(part[stream], at);
      at += part[stream].length;
    }
    return out;
  };
  return { rowCount, key: join('key'), value: join('value') };
}

function splitDocuments(documents: readonly TokenDocument[]): { fitting: TokenDocument[]; heldOut: TokenDocument[] } {
  if (documents.length < 2) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `a calibration needs at least two documents, one of them held out; the texts give ${documents.length}`,
      { documents: documents.length },
    );
  }
  const heldCount = Math.max(
    1,
    Math.min(documents.length - 1, Math.round(documents.length * CALIBRATION_DEFAULTS.heldOutShare)),
  );
  // The last of the long documents: sampling leaves short remainders at the end, whose few positions are not typical.
  // The first document fixes the moments' frame, so it is never held out.
  const held = new Set(
    documents
      .slice(1)
      .toSorted((a, b) => b.tokens.length - a.tokens.length || documents.indexOf(b) - documents.indexOf(a))
      .slice(0, heldCount),
  );
  return {
    fitting: documents.filter((document) => !held.has(document)),
    heldOut: documents.filter((document) => held.has(document)),
  };
}

function calibrationKey(model: ModelIdentity, documents: readonly TokenDocument[], sinks: number): string {
  const hash = createHash('sha256').update(`${model.fingerprint} sinks ${sinks}`);
  for (const document of documents) hash.update(` ${document.sha256}`);
  return hash.digest('hex');
}

function checkSetting({ rank, ratios, sinks }: { rank: number; ratios: readonly number[]; sinks: number }): void {
  const invalid = (message: string): never => {
    throw new KvtcError('KVTC_OPTION_INVALID', message);
  };
  if (!Number.isSafeInteger(rank) || rank < RANK_STEP)
    invalid(`rank is ${rank}; expected an integer of at least ${RANK_STEP}`);
  if (ratios.length === 0 || ratios.some((ratio) => !(ratio >= 1 && ratio <= 10_000)))
    invalid(`ratios ${ratios.join(', ')}; expected numbers from 1 to 10000`);
  if (new Set(ratios).size !== ratios.length) invalid(`ratios ${ratios.join(', ')} hold one twice`);
  if (!Number.isSafeInteger(sinks) || sinks < 0) invalid(`sinks is ${sinks}; expected an integer of at least 0`);
}
