// What a profile of wtc keeps of its tuning: which settings were tried by measured loss, and which was taken.
// File layout: docs/format/profile.md. Does not know: how anything was measured.

import { z } from 'zod';

/** One setting, coded to the same size as the others, and what it cost. */
export interface TuningCandidate {
  /** See StepPoint. */
  readonly exponent: number;
  /** Step index of values less that of keys. */
  readonly valueOffset: number;
  readonly keyStepIndex: number;
  /** All chunks of the documents' prefixes. */
  readonly codedBytes: number;
  readonly klNats: number;
  readonly copyKlNats: number;
}

export interface TuningRecord {
  /** Of the point of the table of steps, as it was before, that the search began at. */
  readonly ratio: number;
  readonly weights: 'exact' | 'as-is';
  readonly prefixTokens: number;
  readonly continuationTokens: number;
  readonly copyTokens: number;
  readonly documents: readonly { readonly source: string; readonly sha256: string; readonly tokens: number }[];
  /** In the order tried; the first is the setting before. */
  readonly candidates: readonly TuningCandidate[];
  /** Index of the one taken. */
  readonly chosen: number;
}

const count = z.int().nonnegative();

export const tuningSchema: z.ZodType<TuningRecord> = z
  .strictObject({
    ratio: z.number().positive(),
    weights: z.enum(['exact', 'as-is']),
    prefixTokens: count,
    continuationTokens: count,
    copyTokens: count,
    documents: z
      .array(
        z.strictObject({ source: z.string().max(4096), sha256: z.string().regex(/^[0-9a-f]{64}$/u), tokens: count }),
      )
      .max(1024),
    candidates: z
      .array(
        z.strictObject({
          exponent: z.number().min(0).max(1),
          valueOffset: z.int(),
          keyStepIndex: z.int(),
          codedBytes: count,
          klNats: z.number(),
          copyKlNats: z.number(),
        }),
      )
      .min(1)
      .max(1024),
    chosen: count,
  })
  .refine(({ candidates, chosen }) => chosen < candidates.length, { error: 'the chosen candidate does not exist' });
