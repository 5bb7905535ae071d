// The plan of one stream: step, rank, cut and lanes, which a container's header carries, joined with the profile's
// scales and tables, which it does not. Does not know bytes of chunks.

import { z } from 'zod';
import { KvtcError, invariant } from '../../base/errors.ts';
import type { StreamKind } from '../../base/geometry.ts';
import type { CodecPlan } from '../codec.ts';
import {
  CLASS_MAX,
  CLASS_MIN,
  GROUP_SIZE,
  SCALE_INDEX_LIMIT,
  componentClasses,
  groupClasses,
  stepOf,
} from './classes.ts';
import type { CoderTables } from './coder-tables.ts';
import { prepareTables } from './coder-tables.ts';
import type { TableFamily } from './family.ts';

/** Ranks are multiples of this, so that matrix products need no ragged edges. */
export const RANK_STEP = 16;

/** Most lanes of a chunk: two warps. */
export const MAX_LANES = 64;

/** Tokens that share a lane by default: its four state bytes and length then cost 0.2 % at 30x. */
export const TOKENS_PER_LANE = 16;

/** Groups of a lower class are not coded by default: there a component costs about what it saves. */
export const DEFAULT_CUT = -8;

/** What a header holds of a stream. */
export interface StreamParameters {
  /** Δ = 2^(stepIndex / 256). */
  readonly stepIndex: number;
  /** Components that may be coded; a multiple of RANK_STEP. */
  readonly rank: number;
  /** Groups whose class in a token lies below this are zero there. */
  readonly cut: number;
}

export type WtcParameters = Readonly<Record<StreamKind, StreamParameters>>;

/** What a profile holds of a stream for this codec. */
export interface StreamTables {
  /** i16[rank of the basis], non-increasing: round(256 · log2 σ). */
  readonly scales: Int16Array;
  readonly family: TableFamily;
}

export interface WtcPlan extends CodecPlan, StreamParameters {
  readonly step: number;
  /** i16[rank]: class of a component in a token of class 0. */
  readonly componentClasses: Int16Array;
  /** i16[rank / 4] */
  readonly groupClasses: Int16Array;
  readonly family: TableFamily;
  readonly tables: CoderTables;
}

const streamSchema = z.strictObject({
  stepIndex: z.int().min(-SCALE_INDEX_LIMIT).max(SCALE_INDEX_LIMIT),
  rank: z
    .int()
    .nonnegative()
    .max(1 << 20)
    .multipleOf(RANK_STEP),
  cut: z.int().min(CLASS_MIN).max(CLASS_MAX),
});
const parametersSchema = z.strictObject({ key: streamSchema, value: streamSchema });

/** The JSON that a header carries. */
export function fileWtcParameters(parameters: WtcParameters): z.infer<typeof parametersSchema> {
  const file = ({ stepIndex, rank, cut }: StreamParameters): StreamParameters => ({ stepIndex, rank, cut });
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
      {
        gotRank: rank,
        profileRank: scales.length,
      },
    );
  }
  return Object.freeze({
    stepIndex,
    rank,
    cut,
    step: stepOf(stepIndex),
    componentClasses: componentClasses(scales, rank, stepIndex),
    groupClasses: groupClasses(scales, rank, stepIndex),
    family,
    tables: prepareTables(family),
  });
}

/**
 * Components that a token of class `tokenClass` codes at this step, rounded up to RANK_STEP and at most the scales'
 * length rounded down to it: the rank a plan needs for that class.
 */
export function rankNeeded(scales: Int16Array, stepIndex: number, cut: number, tokenClass = 0): number {
  const available = scales.length - (scales.length % RANK_STEP);
  const groups = groupClasses(scales, available, stepIndex);
  const coded = groups.findIndex((scaleClass) => scaleClass < cut + 2 * tokenClass);
  const components = coded < 0 ? available : coded * GROUP_SIZE;
  return Math.ceil(components / RANK_STEP) * RANK_STEP;
}
