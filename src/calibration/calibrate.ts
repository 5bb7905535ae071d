// Texts of a model, as token documents → a profile: moments, bases, plans for a list of ratios (paper §3.1-3.2, B.1).
// Does not know: engines (rows come through a function), where texts come from.

import { rm } from 'node:fs/promises';
import { createHash } from 'node:crypto';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { streamWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import type { EmbeddingSource } from './token-means.ts';
import type { Backend } from '../linalg/backend.ts';
import type { ModelIdentity, Provenance, RatioPlans, StepPoint } from '../profile/profile.ts';
import type { ProfileContents } from '../profile/write-profile.ts';
import { writeProfile } from '../profile/write-profile.ts';
import { writeWtcProfile } from '../profile/write-wtc.ts';
import type { Collected, RowSource } from './collect.ts';
import { collectMoments } from './collect.ts';
import type { PlannedStream } from './fit-paper.ts';
import { fitPaperStream } from './fit-paper.ts';
import { fitWtc } from './fit-wtc.ts';
import type { HeldOutRows } from './held-out.ts';
import { collectHeldOut, splitDocuments, unseenDocuments } from './held-out.ts';
import type { MeasuredMoments } from './measured-moments.ts';
import type { TokenDocument } from './sample.ts';
import type { Sensitivity } from './sensitivity-file.ts';
import { embeddingWidth, splitMoments, withEmbeddings } from './token-moments.ts';
import type { TokenMoments } from './token-regression.ts';

/** Rank 2 048 serves 16x and above at p ≤ 7 168; 8x wants about 0.55 p. Sinks as the paper (§3.1). */
export const CALIBRATION_DEFAULTS = {
  rank: 2048,
  ratios: [8, 16, 32, 64],
  sinks: 4,
  seed: 7,
} as const;

export interface CalibrateOptions extends RunOptions {
  readonly model: ModelIdentity;
  readonly documents: readonly TokenDocument[];
  /** Moments measured elsewhere: nothing is collected then, and documents not among theirs are held out. */
  readonly moments?: MeasuredMoments | undefined;
  readonly rows: RowSource;
  readonly backend: Backend;
  /** wtc: the model's embeddings: what token ids tell is learnt then, unless moments are given that do not have it. */
  readonly embeddings?: EmbeddingSource | undefined;
  /** The profile to write. */
  readonly output: string;
  readonly producer: string;
  /** Values of the model's tensors, for provenance. */
  readonly modelParameters?: number | undefined;
  /** Which codec the profile is for; default the paper's. */
  readonly codec?: 'kvtc-paper' | 'wtc' | undefined;
  /** wtc: what the output loses by errors; without it all values count alike. */
  readonly sensitivity?: Sensitivity | undefined;
  /** wtc: how far predicted importances move a token's step (default 0.3; 0 for not at all). */
  readonly exponent?: number | undefined;
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
  /** Of the paper's codec. */
  readonly plans: readonly RatioPlans[];
  /** Of wtc. */
  readonly steps: readonly StepPoint[];
  /** Share of the variance of tokens' log2 importance that is predicted on held-out tokens; null without a predictor. */
  readonly predicted: Readonly<Record<StreamKind, number>> | null;
  /** Wall time by phase; `collectMs` contains the engine's prefill. */
  readonly elapsedMs: { readonly collect: number; readonly basis: number; readonly plan: number };
}

/**
 * Learns a profile and writes it. One in twelve documents is held out and plans the bits; the others make the moments,
 * unless these were measured elsewhere.
 * Interrupted runs resume from the work directory. Same documents, settings and backend → same bytes.
 * Throws KVTC_CALIBRATION_TEXT_SHORT when fewer than two documents or 256 rows are there, KVTC_ROWS_NOT_FINITE,
 * KVTC_MOMENTS_MISMATCH for a foreign work directory or moments with other sinks, KVTC_OPTION_INVALID, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function calibrateDocuments(options: CalibrateOptions): Promise<CalibrationResult> {
  const { model, documents, output, onEvent } = options;
  const setting = {
    rank: options.rank ?? CALIBRATION_DEFAULTS.rank,
    ratios: [...(options.ratios ?? CALIBRATION_DEFAULTS.ratios)].toSorted((a, b) => a - b),
    seed: options.seed ?? CALIBRATION_DEFAULTS.seed,
    sinks: options.sinks ?? options.moments?.sinks ?? CALIBRATION_DEFAULTS.sinks,
  };
  checkSetting(setting);
  checkMoments(options, setting.sinks);
  const { fitting, heldOut } =
    options.moments === undefined
      ? splitDocuments(documents)
      : { fitting: options.moments.documents, heldOut: unseenDocuments(documents, options.moments.documents) };
  const workDirectory = options.workDirectory ?? `${output}.work`;
  const startedMs = performance.now();
  const collected = options.moments ?? (await collect(fitting, setting.sinks, workDirectory, options));
  const partial = { profileId: null, path: workDirectory, heldOutRows: 0, rank: { key: 0, value: 0 } };
  const nothing = { plans: [], steps: [], predicted: null };
  if (options.part !== undefined && options.part.count > 1) {
    const elapsedMs = { collect: performance.now() - startedMs, basis: 0, plan: 0 };
    return { ...partial, ...nothing, rows: collected.moments.key.rows, elapsedMs };
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
  const provenance: Provenance = {
    seed: setting.seed,
    rows,
    heldOutRows: held.rowCount,
    sinks: setting.sinks,
    documents: (options.moments === undefined ? documents : [...fitting, ...heldOut]).map(
      ({ source, sha256, tokens }) => ({
        source: source.slice(0, 4096),
        sha256,
        tokens: tokens.length,
      }),
    ),
    producer: options.producer,
    modelParameters: options.modelParameters,
    ...(options.codec === 'wtc' ? { sensitivity: options.sensitivity?.method ?? 'none' } : {}),
  };
  const common = { model, provenance, quality: [] };
  const fit = options.codec === 'wtc' ? writeWtc : writePaper;
  const written = await fit(common, collected, held, setting, options);
  if (options.keepWork !== true) await rm(workDirectory, { recursive: true, force: true });
  onEvent?.({ type: 'progress', phase: 'plan', done: 2, total: 2, unit: 'streams' });
  const { basisMs, planMs, ...rest } = written;
  const elapsedMs = { collect: collectMs, basis: basisMs, plan: planMs };
  return { ...rest, path: output, rows, heldOutRows: held.rowCount, elapsedMs };
}

/** What fits take: moments of rows and, where these were collected or measured, those of token ids. */
type Sums = Pick<Collected, 'moments'> & { readonly tokens: TokenMoments | null };

/** For wtc with embeddings at hand also what token ids tell: rows are collected with their tokens' embeddings then. */
async function collect(
  documents: readonly TokenDocument[],
  sinks: number,
  workDirectory: string,
  { model, rows, embeddings, codec, backend, part, parts, signal, onEvent }: CalibrateOptions,
): Promise<Sums> {
  const { geometry } = model;
  const key = calibrationKey(model, documents, sinks);
  const run = { documents, backend, workDirectory, part, parts, signal, onEvent };
  const widths = { key: streamWidth(geometry, 'key'), value: streamWidth(geometry, 'value') };
  if (codec !== 'wtc' || embeddings === undefined) {
    const { moments } = await collectMoments({ ...run, rows, widths, key });
    return { moments, tokens: null };
  }
  const width = await embeddingWidth(embeddings);
  const wide = await collectMoments({
    ...run,
    rows: withEmbeddings(rows, embeddings, geometry),
    widths: { key: widths.key + 2 * width, value: widths.value + 2 * width },
    key: `${key} with token ids`,
  });
  return splitMoments(wide.moments, width);
}

type Common = Pick<ProfileContents, 'model' | 'provenance' | 'quality'>;
type Written = Pick<CalibrationResult, 'profileId' | 'rank' | 'plans' | 'steps' | 'predicted'> & {
  readonly basisMs: number;
  readonly planMs: number;
};
interface Setting {
  readonly rank: number;
  readonly ratios: readonly number[];
  readonly seed: number;
}

async function writePaper(
  common: Common,
  { moments }: Sums,
  held: HeldOutRows,
  setting: Setting,
  options: CalibrateOptions,
): Promise<Written> {
  const key = await fitPaperStream('key', moments.key, held, setting, options);
  const value = await fitPaperStream('value', moments.value, held, setting, options);
  throwIfAborted(options.signal);
  const plans = setting.ratios.map((ratio, index) => {
    const [ofKeys, ofValues] = [key.plans[index] as PlannedStream, value.plans[index] as PlannedStream];
    const errors = { keyError: ofKeys.error, valueError: ofValues.error };
    return { ratio, key: ofKeys.plan, value: ofValues.plan, ...errors };
  });
  const streams = { key: key.basis, value: value.basis };
  return {
    profileId: await writeProfile(options.output, { ...common, streams, plans }),
    rank: { key: key.basis.basis.rows, value: value.basis.basis.rows },
    plans,
    steps: [],
    predicted: null,
    basisMs: key.basisMs + value.basisMs,
    planMs: key.planMs + value.planMs,
  };
}

async function writeWtc(
  common: Common,
  { moments, tokens }: Sums,
  held: HeldOutRows,
  setting: Setting,
  options: CalibrateOptions,
): Promise<Written> {
  const { streams, steps, predictor, tokenMeans, predicted, basisMs, planMs } = await fitWtc(moments, held, {
    ...options,
    ...setting,
    tokenMoments: tokens,
  });
  throwIfAborted(options.signal);
  return {
    profileId: await writeWtcProfile(options.output, { ...common, streams, steps, predictor, tokenMeans }),
    rank: { key: streams.key.scales.length, value: streams.value.scales.length },
    plans: [],
    steps,
    predicted,
    basisMs,
    planMs,
  };
}

function calibrationKey(model: ModelIdentity, documents: readonly TokenDocument[], sinks: number): string {
  const hash = createHash('sha256').update(`${model.fingerprint} sinks ${sinks}`);
  for (const document of documents) hash.update(` ${document.sha256}`);
  return hash.digest('hex');
}

function checkMoments({ moments, part, parts }: CalibrateOptions, sinks: number): void {
  if (moments === undefined) return;
  if (part !== undefined || parts !== undefined) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      'moments measured elsewhere are whole: part and parts are no options then',
    );
  }
  if (sinks !== moments.sinks) {
    const message = `the moments leave out ${moments.sinks} sinks of each document, ${sinks} were asked for`;
    throw new KvtcError('KVTC_MOMENTS_MISMATCH', message, { got: moments.sinks, expected: sinks });
  }
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
