// The codec wtc behind the chunk seam: a step from a ratio, a class for every token (predicted importance, nearness to the end),
// chunks without an entropy stage of their own. Does not know: engine rows, transforms, files.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import type { SequenceMeans } from '../calibration/token-means.ts';
import { predictTokenClasses, recencies } from '../calibration/token-steps.ts';
import {
  SCALE_INDEX_LIMIT,
  TOKEN_CLASSES,
  TOKEN_CLASS_MIN,
  codedPairs,
  stepIndexOf,
  stepOf,
} from '../codec/wtc/classes.ts';
import type { WtcParameters, WtcPlan } from '../codec/wtc/plan.ts';
import {
  RANK_STEP,
  USUAL_LOWEST_CLASS,
  createWtcPlan,
  fileWtcParameters,
  parseWtcParameters,
  rankNeeded,
} from '../codec/wtc/plan.ts';
import { WTC_CODEC_ID, decodeWtcChunk, encodeWtcChunk } from '../codec/wtc/wtc-codec.ts';
import type { ContainerHeader } from '../container/types.ts';
import { padded } from '../linalg/backend.ts';
import type { StepPoint, WtcProfile } from '../profile/profile.ts';
import type { ChunkDecoder, ChunkEncoder, CodingOptions } from './chunk-seam.ts';
import { DEFAULT_RATIO, checkRank } from './chunk-seam.ts';

/**
 * A finer window's tokens are coded at a quarter of the step: two octaves, in half-octave classes. A predictor that knows
 * recency makes the steps finer towards the end by itself; there the window's tokens only may take more components.
 */
const WINDOW_CLASS = -4;

/**
 * Of the sinks only the first is kept exact: nothing else does for it (SmolLM2 at 64x, KL 0.58 instead of 0.0047), while the
 * others lose nothing at the finest step, and at 64x they would be a twentieth of the file (docs/levers.md).
 */
const EXACT_SINKS = 1;

/** Ratios worth showing, and worth measuring, where a profile serves any. */
export const USUAL_RATIOS = [8, 16, 32, 64, 128];
export const MEASURED_RATIOS = [8, 12, 16, 24, 32, 48, 64, 96, 128];

/** Those of the ratios that a profile's steps reach; its ends where none is. */
export function servedRatios({ steps }: WtcProfile, ratios: readonly number[]): number[] {
  const least = steps[0]?.ratio ?? 0;
  const most = steps.at(-1)?.ratio ?? 0;
  const found = ratios.filter((ratio) => ratio >= least && ratio <= most);
  return found.length > 0 ? found : [...new Set([least, most])];
}

/** Step indices and exponent between the measured points, by the logarithm of the ratio. */
interface Setting {
  readonly key: { readonly stepIndex: number; readonly cut: number };
  readonly value: { readonly stepIndex: number; readonly cut: number };
  readonly exponent: number;
}

function settingAtRatio({ steps }: WtcProfile, ratio: number): Setting {
  const above = steps.findIndex((point) => point.ratio >= ratio);
  const upper = steps[above];
  const lower = steps[Math.max(0, above - 1)];
  if (upper === undefined || lower === undefined || (above === 0 && upper.ratio > ratio * 1.001)) {
    const [least, most] = [steps[0]?.ratio ?? 0, steps.at(-1)?.ratio ?? 0];
    throw new KvtcError(
      'KVTC_PLAN_MISSING',
      `the profile serves ratios from ${least.toFixed(1)} to ${most.toFixed(1)}, not ${ratio}`,
      { ratio, least, most },
    );
  }
  const share = upper === lower ? 0 : Math.log(ratio / lower.ratio) / Math.log(upper.ratio / lower.ratio);
  return between(lower, upper, share);
}

/** The step of keys that a ratio is coded with. Throws KVTC_PLAN_MISSING. */
export function stepAtRatio(profile: WtcProfile, ratio: number): number {
  return stepOf(settingAtRatio(profile, ratio).key.stepIndex);
}

/** The point whose key step is nearest, moved to the step in both streams. */
function settingAtStep({ steps }: WtcProfile, step: number): Setting {
  const stepIndex = step > 0 && Number.isFinite(step) ? stepIndexOf(step) : NaN;
  if (!(Math.abs(stepIndex) <= SCALE_INDEX_LIMIT / 2)) {
    throw new KvtcError('KVTC_OPTION_INVALID', `step is ${step}; expected a number above 0`, {
      option: 'step',
      got: step,
    });
  }
  const distance = (point: StepPoint): number => Math.abs(point.key.stepIndex - stepIndex);
  const nearest = steps.toSorted((a, b) => distance(a) - distance(b))[0] as StepPoint; // the table is not empty
  const moved = stepIndex - nearest.key.stepIndex;
  return {
    key: { stepIndex, cut: nearest.key.cut },
    value: { stepIndex: nearest.value.stepIndex + moved, cut: nearest.value.cut },
    exponent: nearest.exponent,
  };
}

function between(lower: StepPoint, upper: StepPoint, share: number): Setting {
  const mix = (a: number, b: number): number => a + share * (b - a);
  const stream = (name: StreamKind): Setting['key'] => ({
    stepIndex: Math.round(mix(lower[name].stepIndex, upper[name].stepIndex)),
    cut: (share < 0.5 ? lower : upper)[name].cut,
  });
  return { key: stream('key'), value: stream('value'), exponent: mix(lower.exponent, upper.exponent) };
}

/**
 * See createChunkEncoder. Both modes are `finer` unless asked otherwise; `ratio` is that of tokens outside the window,
 * or, where the predictor knows recency, of all.
 */
export function createWtcEncoder(profile: WtcProfile, options: CodingOptions): ChunkEncoder {
  const { sinkMode = 'finer', sinks, windowMode = 'finer', window, step, means } = options;
  for (const name of ['keyRatio', 'valueRatio'] as const) {
    if (options[name] !== undefined) refuse(`${name} is not an option of codec wtc: one step serves both streams`);
  }
  if (options.entropy !== undefined && options.entropy !== 'none') {
    refuse(`codec wtc codes to final bytes; entropy ${options.entropy} is not an option`);
  }
  const setting =
    step === undefined ? settingAtRatio(profile, options.ratio ?? DEFAULT_RATIO) : settingAtStep(profile, step);
  const finer = windowMode === 'finer' ? window : 0;
  const exactSinks = sinkMode === 'finer' ? Math.min(sinks, EXACT_SINKS) : sinks;
  const predictor = setting.exponent > 0 ? profile.predictor : null;
  const least = predictor === null ? 0 : RANK_STEP * Math.ceil(predictor.components / RANK_STEP);
  const parameters = (lowestClass: number): WtcParameters => {
    const stream = (name: StreamKind): WtcParameters['key'] => {
      const { stepIndex, cut } = setting[name];
      const rank = rankNeeded(profile.tables[name].scales, stepIndex, cut, lowestClass);
      // The predictor looks at its components even where they are not coded.
      return { stepIndex, cut, rank: Math.max(rank, least) };
    };
    return { key: stream('key'), value: stream('value') };
  };
  // Other tokens need fewer components than finer ones: most chunks do with smaller matrices.
  const usual = parameters(predictor === null ? 0 : USUAL_LOWEST_CLASS);
  const filed = withExpected(finer > 0 || exactSinks < sinks ? parameters(WINDOW_CLASS) : usual, usual, profile);
  const plans = plansOf(profile, filed);
  const ranksOf = (range: TokenRange, tokenCount: number): Readonly<Record<StreamKind, number>> => {
    const { key, value } = range.startToken < sinks || range.endToken > tokenCount - finer ? filed : usual;
    return { key: key.rank, value: value.rank };
  };
  return {
    codec: WTC_CODEC_ID,
    parameters: { ...fileWtcParameters(filed) },
    entropy: 'none',
    exactSinks,
    exactWindow: windowMode === 'exact' ? window : 0,
    ranks: ranksOf,
    encode: async (coefficients, range, tokenCount) => {
      const ranks = ranksOf(range, tokenCount);
      const tokens = range.endToken - range.startToken;
      // Without a window chunks depend on their own tokens alone, so that equal prefixes give equal bytes.
      const recency = window === 0 ? undefined : recencies(range, tokenCount);
      const classes =
        predictor === null
          ? { key: new Int8Array(tokens), value: new Int8Array(tokens) }
          : predictTokenClasses(predictor, { tokens, ...coefficients, recency }, setting.exponent);
      // How much a token matters shows in all of it, what ids tell included.
      for (const stream of STREAMS) {
        const shape = { rank: ranks[stream], components: filed[stream].expected ?? 0 };
        await means?.add(stream, range, coefficients[stream], shape, -1);
      }
      const first = predictor?.recency === true ? tokens : Math.max(0, tokenCount - finer - range.startToken);
      const code = (stream: StreamKind) => {
        const own = classes[stream];
        own.fill(TOKEN_CLASS_MIN, 0, Math.max(0, sinks - range.startToken));
        for (let t = first; t < tokens; t++) own[t] = clampClass((own[t] as number) + WINDOW_CLASS);
        const stored = encodeWtcChunk(coefficients[stream], tokens, own, plans[stream], ranks[stream]);
        return { packedBytes: stored.length, stored };
      };
      return { key: code('key'), value: code('value') };
    },
  };
}

/** See createChunkDecoder. */
export function createWtcDecoder(
  header: ContainerHeader,
  profile: WtcProfile,
  means: SequenceMeans | null,
): ChunkDecoder {
  const parameters = parseWtcParameters(header.codecParameters);
  if (header.entropy !== 'none') {
    throw new KvtcError(
      'KVTC_CONTAINER_MALFORMED',
      `the container's codec is wtc and its entropy method ${header.entropy}; wtc has none`,
      { section: 'header', got: header.entropy, expected: 'none' },
    );
  }
  for (const stream of STREAMS) {
    checkRank(stream, parameters[stream].rank, profile);
    checkExpected(stream, parameters[stream].expected ?? 0, profile);
  }
  const plans = plansOf(profile, parameters);
  return {
    decode: async (stored, group, pool) => {
      const { stream, startToken, endToken } = group;
      const plan = plans[stream];
      const { rank, expected = 0 } = parameters[stream];
      const coefficients = pool.take((endToken - startToken) * rank); // [tokens, rank]
      const coded = new Int32Array(endToken - startToken);
      for (const [i, chunk] of group.chunks.entries()) {
        const bytes = stored[i]!;
        if (bytes.length !== chunk.packedBytes) {
          throw new KvtcError(
            'KVTC_CHUNK_MALFORMED',
            `${stream} chunk at token ${chunk.startToken} says ${chunk.packedBytes} packed bytes and has ${bytes.length}`,
            { stream, startToken: chunk.startToken, gotBytes: chunk.packedBytes, expectedBytes: bytes.length },
          );
        }
        const first = chunk.startToken - startToken;
        const tokens = chunk.endToken - chunk.startToken;
        const classes = decodeWtcChunk(bytes, tokens, plan, coefficients.subarray(first * rank));
        for (let t = 0; t < tokens; t++) {
          coded[first + t] = 2 * codedPairs(plan.pairClasses, classes[t]!, plan.cut);
        }
      }
      clearUncoded(coefficients, rank, coded);
      // What is expected of components that a token does not code says little, and costs as much time as others.
      const told = coded.map((count) => (means === null ? 0 : Math.min(expected, count)));
      const leading = leadingCounts(coefficients, rank, told, coded);
      await means?.add(stream, group, coefficients, { rank, components: told }, 1);
      return { coefficients, rank, leading };
    },
  };
}

/** What ids tell is taken out of the components that all tokens may have coded: beyond them it matters to none. */
function withExpected(filed: WtcParameters, usual: WtcParameters, { tokenMeans }: WtcProfile): WtcParameters {
  if (tokenMeans === null) return filed;
  const stream = (name: StreamKind): WtcParameters['key'] => {
    const { rows } = tokenMeans.expected[name];
    return { ...filed[name], expected: Math.min(usual[name].rank, rows - (rows % RANK_STEP)) };
  };
  return { key: stream('key'), value: stream('value') };
}

/** Throws KVTC_PROFILE_MISMATCH when a header claims more than the profile's ids tell. */
function checkExpected(stream: StreamKind, expected: number, { tokenMeans }: WtcProfile): void {
  const known = tokenMeans?.expected[stream].rows ?? 0;
  if (expected <= known) return;
  throw new KvtcError(
    'KVTC_PROFILE_MISMATCH',
    `the container expects ${expected} ${stream} components by token ids, the profile knows ${known}`,
    { stream, gotComponents: known, expectedComponents: expected },
  );
}

type Plans = Readonly<Record<StreamKind, WtcPlan>>;

function plansOf({ tables }: WtcProfile, parameters: WtcParameters): Plans {
  return {
    key: createWtcPlan(parameters.key, tables.key),
    value: createWtcPlan(parameters.value, tables.value),
  };
}

function clampClass(tokenClass: number): number {
  return Math.max(TOKEN_CLASS_MIN, Math.min(TOKEN_CLASS_MIN + TOKEN_CLASSES - 1, tokenClass));
}

/** Sets f32[rows, rank] to zero from each row's count on, as far as a product may read. */
function clearUncoded(values: Float32Array, rank: number, counts: Int32Array): void {
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const read = Math.min(rank, padded(most));
  counts.forEach((count, row) => values.fill(0, row * rank + count, row * rank + read));
}

/** i32[rows]: how many of each row of f32[rows, rank] come before nothing but zeros, between the row's own bounds. */
function leadingCounts(values: Float32Array, rank: number, least: Int32Array, most: Int32Array): Int32Array {
  return most.map((bound, row) => {
    let count = bound;
    while (count > least[row]! && values[row * rank + count - 1] === 0) count--;
    return count;
  });
}

function refuse(message: string): never {
  throw new KvtcError('KVTC_OPTION_INVALID', message);
}
