// One document looked at closely, for the report: where a restored cache is wrong, where its bytes go, how its energy is
// spread over components, and how restoring compares with prefilling as contexts grow.
// Does not know: logits, treatments, how any of it is drawn.

import { invariant } from '../base/errors.ts';
import { throwIfAborted } from '../base/events.ts';
import type { RunOptions } from '../base/events.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { streamWidth } from '../base/geometry.ts';
import type { EndModes } from '../cache/chunk-seam.ts';
import { COMPRESS_DEFAULTS, compressState } from '../cache/compress.ts';
import type { CompressResult } from '../cache/compress.ts';
import { layOutTokens } from '../cache/layout.ts';
import { restoreContainer } from '../cache/restore.ts';
import type { Transforms } from '../cache/transforms.ts';
import { parsePaperParameters } from '../codec/paper/parameters.ts';
import { openContainer } from '../container/reader.ts';
import { memoryTarget } from '../container/target.ts';
import type { LlamaContext } from '../engines/llama/session.ts';
import type { StateView } from '../engines/llama/state.ts';
import { gatherRows, parseState, rowBytesOf } from '../engines/llama/state.ts';
import type { RatioPlans } from '../profile/profile.ts';
import type { ByteOrders } from './byte-orders.ts';
import { measureByteOrders } from './byte-orders.ts';
import type { EvaluationDocument } from './documents.ts';
import type { RowErrors } from './row-errors.ts';
import { measureRowErrors } from './row-errors.ts';
import type { RestoreTimes } from './restore-times.ts';
import { middleRatio, timePrefill, timeRestores } from './restore-times.ts';

/** Points of a spectrum, spaced evenly in the logarithm of the component's number. */
const SPECTRUM_POINTS = 96;
/** Tokens projected at a time. */
const BLOCK_TOKENS = 256;

export interface SpectrumPoint {
  /** Number of the component, from 1. */
  readonly component: number;
  /** Its variance on the calibration rows. */
  readonly variance: number;
  /** Mean square on this document of the components since the point before. */
  readonly measured: number;
  /** Share of this document's energy in this and all earlier components. */
  readonly captured: number;
}

export interface Spectrum {
  readonly width: number;
  /** Mean squared distance of this document's tokens from the profile's mean; the components share it. */
  readonly energyPerToken: number;
  readonly points: readonly SpectrumPoint[];
}

/** One ratio on the document. */
export interface RatioCloseUp {
  readonly ratio: number;
  readonly paperRatio: number;
  readonly effectiveRatio: number;
  readonly rawBytes: number;
  /** Sum to the container. */
  readonly parts: readonly { readonly name: string; readonly byteLength: number }[];
  readonly errors: RowErrors;
  /** Of the published codec's profiles. */
  readonly plans: RatioPlans | null;
}

export interface CloseUp {
  readonly document: { readonly kind: string; readonly source: string; readonly tokens: number };
  /** Of profiles with an orthonormal basis: energies of other transforms do not add up to the rows'. */
  readonly spectrum: Readonly<Record<StreamKind, Spectrum>> | null;
  readonly ratios: readonly RatioCloseUp[];
  /** Of the published codec, at the ratio nearest the paper's 16; absent in results of earlier versions. */
  readonly byteOrders?: (Readonly<Record<StreamKind, ByteOrders>> & { readonly ratio: number }) | null;
  readonly times: RestoreTimes;
}

export interface CloseUpOptions extends RunOptions {
  readonly context: Pick<LlamaContext, 'clear' | 'decode' | 'getState' | 'truncate'>;
  readonly document: EvaluationDocument;
  readonly transforms: Transforms;
  readonly ratios: readonly number[];
  readonly prefixTokens: number;
  readonly sinks: number;
  readonly window: number;
  readonly modes: EndModes;
}

/**
 * Prefills the document's prefix once and codes it at every ratio. Times are this machine's now: let nothing else run.
 * Memory: the state three times, blocks of 256 f32 rows. Throws what engine and codec throw, KVTC_ABORTED.
 */
export async function measureCloseUp(options: CloseUpOptions): Promise<CloseUp> {
  const { context, document, transforms, ratios, prefixTokens, signal, onEvent } = options;
  const steps = ratios.length + 3;
  const step = (done: number): void => {
    throwIfAborted(signal);
    onEvent?.({ type: 'progress', phase: 'close-up', done, total: steps, unit: 'steps' });
  };
  step(0);
  const tokens = document.tokens.subarray(0, prefixTokens);
  const prefill = await timePrefill(options, tokens);
  const state = context.getState();
  const exact = parseState(state);
  step(1);
  const coded = codedTokens(prefixTokens, options);
  const ratioCloseUps: RatioCloseUp[] = [];
  for (const [index, ratio] of ratios.entries()) {
    ratioCloseUps.push(await closeUpRatio(options, state, exact, tokens, ratio, coded));
    step(index + 2);
  }
  const errors = ratioCloseUps[0]?.errors;
  const spectrum =
    'plans' in transforms.profile
      ? {
          key: await measureSpectrum(transforms, exact, 'key', coded, errors?.key.energyPerToken ?? 0),
          value: await measureSpectrum(transforms, exact, 'value', coded, errors?.value.energyPerToken ?? 0),
        }
      : null;
  const byteOrders = 'plans' in transforms.profile ? await orderBytes(options, state, tokens) : null;
  step(steps - 1);
  const times = await timeRestores(options, tokens, prefill);
  step(steps);
  return {
    document: { kind: document.kind, source: document.source, tokens: prefixTokens },
    spectrum,
    ratios: ratioCloseUps,
    byteOrders,
    times,
  };
}

/** All coded tokens as one chunk, packed, in the orders that DEFLATE might find them in. */
async function orderBytes(
  { transforms, ratios, sinks, window, signal }: CloseUpOptions,
  state: Uint8Array,
  tokens: Int32Array,
): Promise<NonNullable<CloseUp['byteOrders']>> {
  const ratio = middleRatio(ratios);
  const target = memoryTarget();
  const whole = { ratio, sinks, window, chunkTokens: tokens.length, entropy: 'none', tokens, signal } as const;
  await compressState(state, transforms, target, whole);
  const container = await openContainer(target.bytes());
  try {
    const plans = parsePaperParameters(container.header.codecParameters);
    const measure = async (stream: StreamKind): Promise<ByteOrders> => {
      const chunk = container.chunks.find((one) => one.stream === stream);
      invariant(chunk !== undefined, `no ${stream} chunk of ${tokens.length} tokens`);
      const packed = await container.readChunk(chunk);
      return measureByteOrders(packed, chunk.endToken - chunk.startToken, plans[stream]);
    };
    return { ratio, key: await measure('key'), value: await measure('value') };
  } finally {
    await container.close();
  }
}

function codedTokens(tokenCount: number, { sinks, window }: CloseUpOptions): readonly TokenRange[] {
  const { exactRanges, chunkTokens } = COMPRESS_DEFAULTS;
  return layOutTokens(tokenCount, { sinks, window, exactRanges, chunkTokens }).chunks;
}

async function closeUpRatio(
  { transforms, sinks, window, modes, signal }: CloseUpOptions,
  state: Uint8Array,
  exact: StateView,
  tokens: Int32Array,
  ratio: number,
  coded: readonly TokenRange[],
): Promise<RatioCloseUp> {
  const target = memoryTarget();
  const stored = await compressState(state, transforms, target, { ratio, sinks, window, ...modes, tokens, signal });
  const container = await openContainer(target.bytes());
  try {
    const restored = await restoreContainer(container, transforms, { vTransposed: exact.vTransposed, signal });
    const { profile, backend } = transforms;
    const errors = await measureRowErrors({
      profile,
      backend,
      exact,
      restored: parseState(restored.state),
      coded: (token) => coded.some(({ startToken, endToken }) => token >= startToken && token < endToken),
    });
    const { rawBytes, paperRatio, effectiveRatio } = stored;
    const plans = plansOf(transforms, ratio);
    return { ratio, paperRatio, effectiveRatio, rawBytes, parts: namedParts(stored), errors, plans };
  } finally {
    await container.close();
  }
}

function plansOf({ profile }: Pick<Transforms, 'profile'>, ratio: number): RatioPlans | null {
  return 'plans' in profile ? (profile.plans.find((plan) => plan.ratio === ratio) ?? null) : null;
}

/** The parts people ask about; they sum to the container. */
function namedParts({ parts, tokenCount }: CompressResult): { name: string; byteLength: number }[] {
  const sums = { keys: 0, values: 0, sinks: 0, window: 0, 'ids, index, checksums': 0 };
  for (const part of parts) {
    if (part.kind === 'chunk') sums[part.stream === 'key' ? 'keys' : 'values'] += part.byteLength;
    else if (part.kind === 'exact-rows') {
      sums[part.tokens?.endToken === tokenCount ? 'window' : 'sinks'] += part.byteLength;
    } else sums['ids, index, checksums'] += part.byteLength;
  }
  return Object.entries(sums).map(([name, byteLength]) => ({ name, byteLength }));
}

/** Mean squares of the document's coefficients beside the profile's variances. */
async function measureSpectrum(
  transforms: Transforms,
  view: StateView,
  stream: StreamKind,
  coded: readonly TokenRange[],
  energyPerToken: number,
): Promise<Spectrum> {
  const { profile } = transforms;
  const { geometry } = profile.model;
  const rank = profile.rank[stream];
  const element = stream === 'key' ? view.keyType : view.valueType;
  const analysis = await transforms.analysis(stream, rank, element);
  const squares = new Float64Array(rank);
  const coefficients = new Float32Array(BLOCK_TOKENS * rank); // [tokens, rank]
  let count = 0;
  for (const { startToken, endToken } of coded) {
    for (let start = startToken; start < endToken; start += BLOCK_TOKENS) {
      const range = { startToken: start, endToken: Math.min(start + BLOCK_TOKENS, endToken) };
      const tokens = range.endToken - range.startToken;
      const rows = new Uint8Array(tokens * geometry.layers * rowBytesOf(view, stream));
      gatherRows(view, stream, { startLayer: 0, endLayer: geometry.layers }, range, rows);
      const out = coefficients.subarray(0, tokens * rank);
      await analysis.project(rows, view.positions.subarray(range.startToken, range.endToken), out);
      for (let i = 0; i < out.length; i++) squares[i % rank]! += out[i]! * out[i]!;
      count += tokens;
    }
  }
  const { variances } = profile.stream(stream);
  const points: SpectrumPoint[] = [];
  let summed = 0;
  let from = 0;
  for (let i = 0; i < SPECTRUM_POINTS; i++) {
    const to = Math.round(rank ** (i / (SPECTRUM_POINTS - 1)));
    if (to <= from) continue;
    let within = 0;
    for (let component = from; component < to; component++) within += (squares[component] ?? 0) / Math.max(1, count);
    summed += within;
    points.push({
      component: to,
      variance: variances[to - 1] ?? 0,
      measured: within / (to - from),
      captured: energyPerToken === 0 ? 0 : Math.min(1, summed / energyPerToken),
    });
    from = to;
  }
  return { width: streamWidth(geometry, stream), energyPerToken, points };
}
