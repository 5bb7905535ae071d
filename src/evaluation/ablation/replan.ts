// Other bit plans for a profile's own basis, from rows that it has not seen: what group sizes and prices are worth.
// Does not know: logits, treatments' results, how plans are coded.

import { KvtcError } from '../../base/errors.ts';
import type { RunOptions } from '../../base/events.ts';
import { throwIfAborted } from '../../base/events.ts';
import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS, streamWidth } from '../../base/geometry.ts';
import type { Transforms } from '../../cache/transforms.ts';
import type { TokenDocument } from '../../calibration/sample.ts';
import { allocateBits, planBits, ratioBudgetBits } from '../../codec/paper/allocation.ts';
import type { ErrorTables } from '../../codec/paper/error-tables.ts';
import { measureErrors } from '../../codec/paper/error-tables.ts';
import type { GroupType } from '../../codec/paper/plan.ts';
import { gatherRows, parseState, rowBytesOf } from '../../engines/llama/state.ts';
import type { PaperProfile } from '../../profile/profile.ts';
import type { ProtocolContext } from '../treatment.ts';

/** Rows that plan the bits, as calibration takes them. */
const PLAN_ROWS = 2048;
/** Tokens projected at a time. */
const CHUNK_TOKENS = 128;

export type StreamTables = Readonly<Record<StreamKind, ErrorTables>>;

/** What a plan may be made of; all of the paper's when undefined. */
export interface PlanRules {
  readonly sizes?: readonly number[] | undefined;
  readonly types?: readonly GroupType[] | undefined;
  /** Charges fp8 groups 32 bits of metadata a token, as integer groups. */
  readonly fp8Metadata?: boolean | undefined;
}

/**
 * Error tables of a profile's components on rows of these documents, sinks left out: chunks spread evenly over each.
 * Throws KVTC_CALIBRATION_TEXT_SHORT without rows, and what the engine throws.
 */
export async function measureTables(
  transforms: Transforms,
  context: ProtocolContext,
  documents: readonly TokenDocument[],
  sinks: number,
  { signal, onEvent }: RunOptions,
): Promise<StreamTables> {
  const { profile } = transforms;
  const { geometry } = profile.model;
  const allLayers = { startLayer: 0, endLayer: geometry.layers };
  const coefficients: Record<StreamKind, Float32Array> = {
    key: new Float32Array(PLAN_ROWS * profile.rank.key),
    value: new Float32Array(PLAN_ROWS * profile.rank.value),
  };
  const perDocument = Math.ceil(PLAN_ROWS / CHUNK_TOKENS / documents.length);
  let rows = 0;
  for (const [index, { tokens }] of documents.entries()) {
    throwIfAborted(signal);
    onEvent?.({ type: 'progress', phase: 'plan', done: index, total: documents.length, unit: 'documents' });
    context.clear();
    await context.decode(tokens, { logits: 'none', signal });
    const view = parseState(context.getState());
    const chunks = Math.min(perDocument, Math.floor((view.tokenCount - sinks) / CHUNK_TOKENS));
    for (let chunk = 0; chunk < chunks && rows < PLAN_ROWS; chunk++, rows += CHUNK_TOKENS) {
      const startToken =
        sinks + Math.floor(((view.tokenCount - sinks - CHUNK_TOKENS) * chunk) / Math.max(1, chunks - 1));
      const range = { startToken, endToken: startToken + CHUNK_TOKENS };
      for (const stream of STREAMS) {
        const bytes = new Uint8Array(CHUNK_TOKENS * geometry.layers * rowBytesOf(view, stream));
        gatherRows(view, stream, allLayers, range, bytes);
        const rank = profile.rank[stream];
        const element = stream === 'key' ? view.keyType : view.valueType;
        const analysis = await transforms.analysis(stream, rank, element);
        const out = coefficients[stream].subarray(rows * rank, (rows + CHUNK_TOKENS) * rank);
        await analysis.project(bytes, view.positions.subarray(startToken, range.endToken), out);
      }
    }
  }
  if (rows === 0) {
    const message = `planning needs documents of ${CHUNK_TOKENS} tokens or more`;
    throw new KvtcError('KVTC_CALIBRATION_TEXT_SHORT', message, { documents: documents.length });
  }
  return {
    key: measureErrors(coefficients.key, rows, profile.rank.key),
    value: measureErrors(coefficients.value, rows, profile.rank.value),
  };
}

/**
 * The profile with plans of one ratio made by these rules; reads and closes through the original. Null where no group of
 * these sizes fits the basis or the budget.
 */
export function replan(
  profile: PaperProfile,
  tables: StreamTables,
  ratio: number,
  rules: PlanRules,
): PaperProfile | null {
  const planned = (stream: StreamKind) => {
    const { sizes, types, ...rest } = tables[stream];
    const allowed = {
      ...rest,
      sizes: sizes.filter(({ size }) => rules.sizes?.includes(size) ?? true),
      types: rules.types ?? types,
    };
    const budget = ratioBudgetBits(streamWidth(profile.model.geometry, stream), ratio);
    return planBits(allocateBits(allowed, budget, { fp8Metadata: rules.fp8Metadata }), budget);
  };
  const [key, value] = [planned('key'), planned('value')];
  if (key.plan.rank === 0 || value.plan.rank === 0) return null;
  const plans = {
    ratio,
    key: key.plan,
    value: value.plan,
    keyError: key.relativeError,
    valueError: value.relativeError,
  };
  return { ...profile, plans: [plans] };
}
