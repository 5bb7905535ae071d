// The JSON parts of a profile: schemas, limits, canonical text, and what must hold between the parts.
// Does not know: files, tensors' bytes.

import { z } from 'zod';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { STREAMS, streamWidth } from '../base/geometry.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import { RANK_STEP, planProblem } from '../codec/paper/plan.ts';
import { CLASS_MAX, CLASS_MIN, SCALE_INDEX_LIMIT } from '../codec/wtc/classes.ts';
import type { ModelIdentity, Provenance, QualityPoint, RatioPlans, StepPoint } from './profile.ts';

export const PROFILE_FORMAT = 'kvtc-profile';
/** The paper's codec is version 1, wtc version 2, and 3 with token means; a reader refuses versions it does not know. */
export const PROFILE_VERSIONS = { 'kvtc-paper': 1, wtc: 2, tokenMeans: 3 } as const;

/** Values one token may have per stream; far above any known model, small enough that no product overflows. */
const MAX_STREAM_WIDTH = 1 << 20;

const count = z.int().positive();
const finite = z.number();
const nonNegative = z.number().nonnegative();
const sha256 = z.string().regex(/^[0-9a-f]{64}$/u, 'expected 64 hex digits');

export const modelSchema: z.ZodType<ModelIdentity> = z.strictObject({
  architecture: z.string().min(1).max(64),
  name: z.string().max(1024),
  geometry: z
    .strictObject({
      layers: count.max(4096),
      kvHeads: count.max(4096),
      keyHeadDim: count.max(65_536),
      valueHeadDim: count.max(65_536),
    })
    .refine((geometry) => STREAMS.every((stream) => streamWidth(geometry, stream) <= MAX_STREAM_WIDTH), {
      error: `a stream is wider than ${MAX_STREAM_WIDTH} values`,
    }),
  rope: z.strictObject({
    pairing: z.enum(['interleaved', 'half-split']),
    dims: z.int().nonnegative().max(65_536),
    frequencyBase: finite,
    frequencyScale: finite,
    extFactor: finite,
    attnFactor: finite,
    betaFast: finite,
    betaSlow: finite,
    originalContext: z.int().nonnegative(),
    frequencyFactors: z.array(finite).max(32_768).nullable(),
  }),
  fingerprint: sha256,
});

export const provenanceSchema: z.ZodType<Provenance> = z.strictObject({
  seed: z.int().nonnegative(),
  rows: z.int().nonnegative(),
  heldOutRows: z.int().nonnegative(),
  sinks: z.int().nonnegative(),
  documents: z.array(z.strictObject({ source: z.string().max(4096), sha256, tokens: z.int().nonnegative() })),
  producer: z.string().max(1024),
  sensitivity: z.enum(['none', 'forward', 'gradient']).optional(),
  modelParameters: z.int().positive().optional(),
});

export const qualitySchema: z.ZodType<readonly QualityPoint[]> = z.array(
  z.strictObject({
    ratio: z.number().positive(),
    step: z.number().positive().optional(),
    paperRatio: nonNegative,
    effectiveRatio: nonNegative,
    klNats: finite,
    copyKlNats: finite.nullable(),
    top1Agreement: z.number().min(0).max(1),
    weights: z.enum(['exact', 'as-is']),
    text: z.string().max(4096),
    tokens: z.int().nonnegative(),
  }),
);

/** A plan on file: rank, and each group as [start, size, type, exponent]. */
const filedPlan = z.strictObject({
  rank: z.int().nonnegative(),
  groups: z.array(z.tuple([z.int(), z.int(), z.enum(['int2', 'int4', 'fp8']), z.int()])).max(MAX_STREAM_WIDTH),
});
export const plansSchema = z.array(
  z.strictObject({
    ratio: z.number().positive(),
    key: filedPlan,
    value: filedPlan,
    keyError: nonNegative,
    valueError: nonNegative,
  }),
);

export function filePlans(plans: readonly RatioPlans[]): z.infer<typeof plansSchema> {
  const file = ({ rank, groups }: PaperPlan): z.infer<typeof filedPlan> => ({
    rank,
    groups: groups.map(({ start, size, type, exponent }) => [start, size, type, exponent]),
  });
  return plans.map(({ ratio, key, value, keyError, valueError }) => ({
    ratio,
    key: file(key),
    value: file(value),
    keyError,
    valueError,
  }));
}

export function unfilePlans(filed: z.infer<typeof plansSchema>): RatioPlans[] {
  const unfile = ({ rank, groups }: z.infer<typeof filedPlan>): PaperPlan => ({
    rank,
    groups: groups.map(([start, size, type, exponent]) => ({ start, size, type, exponent })),
  });
  return filed.map(({ key, value, ...rest }) => ({ ...rest, key: unfile(key), value: unfile(value) }));
}

/** What is wrong with plans for bases of the given ranks, in words, or null. Ratios must be distinct and rising. */
export function plansProblem(plans: readonly RatioPlans[], rank: Readonly<Record<StreamKind, number>>): string | null {
  let previous = 0;
  for (const plan of plans) {
    if (plan.ratio <= previous) return `ratio ${plan.ratio} follows ${previous}; ratios must be distinct and rising`;
    previous = plan.ratio;
    for (const stream of STREAMS) {
      const problem = planProblem(plan[stream], rank[stream]);
      if (problem !== null) return `the ${stream} plan for ratio ${plan.ratio}: ${problem}`;
    }
  }
  return null;
}

/** The exact text that the profile's id covers for the model: keys in a fixed order, no white space. */
export function canonicalModel(model: ModelIdentity): string {
  const { geometry, rope } = model;
  return JSON.stringify({
    architecture: model.architecture,
    name: model.name,
    geometry: {
      layers: geometry.layers,
      kvHeads: geometry.kvHeads,
      keyHeadDim: geometry.keyHeadDim,
      valueHeadDim: geometry.valueHeadDim,
    } satisfies CacheGeometry,
    rope: {
      pairing: rope.pairing,
      dims: rope.dims,
      frequencyBase: rope.frequencyBase,
      frequencyScale: rope.frequencyScale,
      extFactor: rope.extFactor,
      attnFactor: rope.attnFactor,
      betaFast: rope.betaFast,
      betaSlow: rope.betaSlow,
      originalContext: rope.originalContext,
      frequencyFactors: rope.frequencyFactors,
    },
    fingerprint: model.fingerprint,
  });
}

const streamStep = z.strictObject({
  stepIndex: z.int().min(-SCALE_INDEX_LIMIT).max(SCALE_INDEX_LIMIT),
  rank: z.int().nonnegative().multipleOf(RANK_STEP),
  cut: z.int().min(CLASS_MIN).max(CLASS_MAX),
});
export const stepsSchema: z.ZodType<readonly StepPoint[]> = z
  .array(
    z.strictObject({
      ratio: z.number().positive(),
      key: streamStep,
      value: streamStep,
      bitsPerToken: nonNegative,
      exponent: z.number().min(0).max(1),
    }),
  )
  .max(1024);

/** What is wrong with a table of steps for the given ranks, in words, or null. Ratios and steps must rise together. */
export function stepsProblem(steps: readonly StepPoint[], rank: Readonly<Record<StreamKind, number>>): string | null {
  if (steps.length === 0) return 'its table of steps is empty';
  for (const [i, point] of steps.entries()) {
    const before = steps[i - 1];
    if (before !== undefined && point.ratio <= before.ratio) {
      return `ratio ${point.ratio} follows ${before.ratio}; ratios must be distinct and rising`;
    }
    for (const stream of STREAMS) {
      if (point[stream].rank > rank[stream]) {
        return `the ${stream} rank ${point[stream].rank} at ratio ${point.ratio} exceeds the profile's ${rank[stream]}`;
      }
      if (before !== undefined && point[stream].stepIndex < before[stream].stepIndex) {
        return `the ${stream} step falls at ratio ${point.ratio}`;
      }
    }
  }
  return null;
}
