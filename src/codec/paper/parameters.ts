// The paper codec's parameters inside a container's header: the two plans a file was coded with, as JSON.
// Does not know: the rest of the header, profiles.

import { z } from 'zod';
import { KvtcError } from '../../base/errors.ts';
import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS } from '../../base/geometry.ts';
import type { PaperPlan } from './plan.ts';
import { planProblem } from './plan.ts';

/** Far above any basis; the profile's own rank is checked where rows are multiplied. */
const MAX_RANK = 1 << 20;

const planSchema = z.strictObject({
  rank: z.int().nonnegative().max(MAX_RANK),
  groups: z
    .array(z.strictObject({ start: z.int(), size: z.int(), type: z.enum(['int2', 'int4', 'fp8']), exponent: z.int() }))
    .max(MAX_RANK),
});
const parametersSchema = z.strictObject({
  keyRatio: z.number().positive(),
  valueRatio: z.number().positive(),
  key: planSchema,
  value: planSchema,
});

export interface PaperParameters extends Readonly<Record<StreamKind, PaperPlan>> {
  /** Targets given to the bit allocator; a note for people, decoding needs only the plans. */
  readonly keyRatio: number;
  readonly valueRatio: number;
}

/** The JSON that a header carries. */
export function filePaperParameters(parameters: PaperParameters): z.infer<typeof parametersSchema> {
  const file = ({ rank, groups }: PaperPlan): z.infer<typeof planSchema> => ({
    rank,
    groups: groups.map(({ start, size, type, exponent }) => ({ start, size, type, exponent })),
  });
  const { keyRatio, valueRatio, key, value } = parameters;
  return { keyRatio, valueRatio, key: file(key), value: file(value) };
}

/** Checks a header's `codecParameters`. Throws KVTC_CONTAINER_MALFORMED. */
export function parsePaperParameters(json: unknown): PaperParameters {
  const parsed = parametersSchema.safeParse(json);
  if (!parsed.success) throw malformed(z.prettifyError(parsed.error));
  for (const stream of STREAMS) {
    const problem = planProblem(parsed.data[stream], MAX_RANK);
    if (problem !== null) throw malformed(`${stream} plan: ${problem}`);
  }
  return parsed.data;
}

function malformed(problem: string): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the header's kvtc-paper parameters are invalid: ${problem}`, {
    section: 'header',
  });
}
