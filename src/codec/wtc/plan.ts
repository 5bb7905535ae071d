// The plan of one stream: step, rank and cut, which a container's header carries, joined with the profile's scales and
// tables, which it does not. Does not know bytes of chunks.

import { z } from 'zod';
import { KvtcError, invariant } from '../../base/errors.ts';
import type { StreamKind } from '../../base/geometry.ts';
import type { CodecPlan } from '../codec.ts';
import {
  BLOCK_COMPONENTS,
  CLASS_MAX,
  CLASS_MIN,
  SCALE_INDEX_LIMIT,
  TOKEN_CLASSES,
  TOKEN_CLASS_MIN,
  codedPairs,
  componentClasses,
  pairClasses,
  runEnds,
  stepOf,
} from './classes.ts';
import type { TableFamily } from './family.ts';
import { PAIR_CLASS_MAX } from './symbols.ts';
import { weightRow } from './symbolise.ts';

/** Ranks are multiples of this, so that matrix products need no ragged edges. */
export const RANK_STEP = 16;

/**
 * Pairs of a lower class are not coded by default: there components cost what they save. On SmolLM2's rows −6 needs
 * 0.2 % less rate than −7 at equal error, −5 the same as −6 within 0.3 %, −4 up to 1.5 % more.
 */
export const DEFAULT_CUT = -5;

/**
 * Where importance moves tokens' steps, tokens outside the finer window are coded with the components that one of this
 * class takes, and no more: finer ones are a few in a hundred. On SmolLM2 (exponent 0.3, ratios 24 to 110) that costs 0.03 to
 * 0.12 % of rate at equal weighted error, −0.5 would cost 0.4 to 1.0 %; it leaves 46 to 92 % of what −4 takes.
 */
export const USUAL_LOWEST_CLASS = -1;

/** What a header holds of a stream. */
export interface StreamParameters {
  /** Δ = 2^(stepIndex / 256). */
  readonly stepIndex: number;
  /** Components that may be coded; a multiple of RANK_STEP. */
  readonly rank: number;
  /** Pairs whose class in a token lies below this are zero there. */
  readonly cut: number;
  /** Leading components of which what token ids tell was taken out; a multiple of RANK_STEP. Absent: none. */
  readonly expected?: number | undefined;
}

export type WtcParameters = Readonly<Record<StreamKind, StreamParameters>>;

/** What a profile holds of a stream for this codec. */
export interface StreamTables {
  /** i16[rank of the basis], non-increasing: round(256 · log2 σ). */
  readonly scales: Int16Array;
  readonly family: TableFamily;
}

export interface WtcPlan extends CodecPlan, Omit<StreamParameters, 'expected'> {
  readonly step: number;
  /** i16[rank]: class of a component in a token of class 0. */
  readonly componentClasses: Int16Array;
  /** i16[rank / 2] */
  readonly pairClasses: Int16Array;
  /** i32[rank / 2], see runEnds */
  readonly runEnds: Int32Array;
  readonly family: TableFamily;
  /** i32[blocks + 1]: what is expected of a token's weighted magnitudes before each block of 32 components. */
  expectedMagnitudes(tokenClass: number): Int32Array;
}

const components = z
  .int()
  .nonnegative()
  .max(1 << 20)
  .multipleOf(RANK_STEP);
const streamSchema = z
  .strictObject({
    stepIndex: z.int().min(-SCALE_INDEX_LIMIT).max(SCALE_INDEX_LIMIT),
    rank: components,
    cut: z.int().min(CLASS_MIN).max(CLASS_MAX),
    expected: components.optional(),
  })
  .refine(({ rank, expected = 0 }) => expected <= rank, { error: 'more components are expected than there are' });
const parametersSchema = z.strictObject({ key: streamSchema, value: streamSchema });

/** The JSON that a header carries. */
export function fileWtcParameters(parameters: WtcParameters): z.infer<typeof parametersSchema> {
  const file = ({ stepIndex, rank, cut, expected }: StreamParameters): StreamParameters => ({
    stepIndex,
    rank,
    cut,
    ...(expected === undefined ? {} : { expected }),
  });
  return { key: file(parameters.key), value: file(parameters.value) };
}

/** Checks a header's `codecParameters`. Throws KVTC_CONTAINER_MALFORMED. */
export function parseWtcParameters(json: unknown): WtcParameters {
  const parsed = parametersSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new KvtcError(
    'KVTC_CONTAINER_MALFORMED',
    `the header's wtc parameters are invalid: ${z.prettifyError(parsed.error)}`,
    { section: 'header' },
  );
}

/**
 * Joins a header's parameters with a profile's scales and tables. Throws KVTC_PROFILE_MISMATCH when the rank exceeds
 * the profile's.
 */
export function createWtcPlan(parameters: StreamParameters, { scales, family }: StreamTables): WtcPlan {
  const { stepIndex, rank, cut } = parameters;
  invariant(rank % RANK_STEP === 0, `rank ${rank}`);
  if (rank > scales.length) {
    throw new KvtcError(
      'KVTC_PROFILE_MISMATCH',
      `the file codes ${rank} components, the profile has ${scales.length}`,
      { gotRank: rank, profileRank: scales.length },
    );
  }
  const ofComponents = componentClasses(scales, rank, stepIndex);
  const ofPairs = pairClasses(scales, rank, stepIndex);
  const expected: Int32Array[] = [];
  return Object.freeze({
    stepIndex,
    rank,
    cut,
    step: stepOf(stepIndex),
    componentClasses: ofComponents,
    pairClasses: ofPairs,
    runEnds: runEnds(ofPairs),
    family,
    expectedMagnitudes: (tokenClass: number) => {
      const index = tokenClass - TOKEN_CLASS_MIN;
      invariant(index >= 0 && index < TOKEN_CLASSES, `token class ${tokenClass}`);
      return (expected[index] ??= expectedMagnitudes(ofComponents, ofPairs, family.expectations, tokenClass));
    },
  });
}

/** Running sums of expectations: a pair coded as two singles by its own class counts by its components' classes. */
export function expectedMagnitudes(
  ofComponents: Int16Array,
  ofPairs: Int16Array,
  expectations: Uint16Array,
  tokenClass: number,
): Int32Array {
  const blockPairs = BLOCK_COMPONENTS / 2;
  const sums = new Int32Array(Math.ceil(ofPairs.length / blockPairs) + 1);
  let sum = 0;
  for (let u = 0; u < ofPairs.length; u++) {
    if (u % blockPairs === 0) sums[u / blockPairs] = sum;
    const pairClass = ofPairs[u]! - 2 * tokenClass;
    if (pairClass > PAIR_CLASS_MAX) {
      sum += expectations[weightRow(ofComponents[2 * u]! - 2 * tokenClass)]!;
      sum += expectations[weightRow(ofComponents[2 * u + 1]! - 2 * tokenClass)]!;
    } else {
      sum += 2 * expectations[weightRow(pairClass)]!;
    }
  }
  sums[sums.length - 1] = sum;
  return sums;
}

/** Components that a token of class `tokenClass` codes at this step, rounded up to RANK_STEP. */
export function rankNeeded(scales: Int16Array, stepIndex: number, cut: number = DEFAULT_CUT, tokenClass = 0): number {
  const available = scales.length - (scales.length % RANK_STEP);
  const pairs = codedPairs(pairClasses(scales, available, stepIndex), tokenClass, cut);
  return Math.ceil((2 * pairs) / RANK_STEP) * RANK_STEP;
}
