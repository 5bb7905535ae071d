// Makes settings of wtc comparable: the step at which one takes as many bytes as another on the same caches, counted by
// coding the chunks that a container would hold. Does not know: engines' losses, how settings are chosen.

import { throwIfAborted } from '../../base/events.ts';
import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS } from '../../base/geometry.ts';
import { createChunkEncoder } from '../../cache/chunk-coder.ts';
import { COMPRESS_DEFAULTS } from '../../cache/compress.ts';
import { layOutTokens } from '../../cache/layout.ts';
import type { Transforms } from '../../cache/transforms.ts';
import type { SequenceMeans } from '../../calibration/token-means.ts';
import type { TokenCoefficients } from '../../calibration/token-steps.ts';
import { SCALE_UNITS, stepOf } from '../../codec/wtc/classes.ts';
import { gatherRows, parseState, rowBytesOf } from '../../engines/llama/state.ts';
import type { StepPoint, WtcProfile } from '../../profile/profile.ts';
import type { TunedSetting } from './search.ts';

/** Coefficients of a cache's tokens from the sinks on, all of the profile's components. */
export interface CachedCoefficients extends TokenCoefficients {
  readonly firstToken: number;
  /** What their ids tell; not taken out yet. */
  readonly means: SequenceMeans | null;
}

/** A setting at the step of its own that gives it the wanted size. */
export interface SizedSetting extends TunedSetting {
  readonly keyStepIndex: number;
  readonly codedBytes: number;
}

/** What an octave of step does to log2 of the size where nothing better is known. */
const USUAL_SLOPE = -0.85;
const LEAST_SLOPE = -0.1;
/** Half of what one step index does. */
const TOLERANCE = 0.5 / SCALE_UNITS;
const MOST_TRIES = 10;
/** Octaves one try may go. */
const MOST_MOVE = 2;

/** Projects a state's tokens outside the sinks, a chunk at a time. Takes f16, bf16 and f32 caches. */
export async function cachedCoefficients(
  state: Uint8Array,
  tokens: Int32Array,
  transforms: Transforms,
  signal: AbortSignal | undefined,
): Promise<CachedCoefficients> {
  const { rank, model } = transforms.profile;
  const view = parseState(state);
  const firstToken = Math.min(COMPRESS_DEFAULTS.sinks, view.tokenCount);
  const count = view.tokenCount - firstToken;
  const out = { key: new Float32Array(count * rank.key), value: new Float32Array(count * rank.value) }; // [tokens, rank]
  const layers = { startLayer: 0, endLayer: model.geometry.layers };
  for (const stream of STREAMS) {
    const element = stream === 'key' ? view.keyType : view.valueType;
    const analysis = await transforms.analysis(stream, rank[stream], element);
    for (const range of chunksOf(view.tokenCount)) {
      throwIfAborted(signal);
      const length = range.endToken - range.startToken;
      const rows = new Uint8Array(length * layers.endLayer * rowBytesOf(view, stream));
      gatherRows(view, stream, layers, range, rows);
      const at = (range.startToken - firstToken) * rank[stream];
      const positions = view.positions.subarray(range.startToken, range.endToken);
      const coefficients = out[stream].subarray(at, at + length * rank[stream]);
      await analysis.project(rows, positions, coefficients);
    }
  }
  return { tokens: count, firstToken, means: await transforms.means(tokens), ...out };
}

/** The profile with nothing but this setting in its table: any step then codes with its exponent and offset. */
export function profileWith(profile: WtcProfile, setting: TunedSetting, keyStepIndex: number): WtcProfile {
  const { cut } = (profile.steps[0] as StepPoint).key; // the table is not empty
  const stream = (stepIndex: number): StepPoint['key'] => ({ stepIndex, rank: 0, cut });
  const value = stream(keyStepIndex + setting.valueOffset);
  return {
    ...profile,
    steps: [{ ratio: 1, bitsPerToken: 0, exponent: setting.exponent, key: stream(keyStepIndex), value }],
  };
}

/** Bytes of all chunks that `compress` would store of these caches with a setting and a step, window finer as usual. */
export async function codedBytes(
  profile: WtcProfile,
  caches: readonly CachedCoefficients[],
  setting: TunedSetting,
  keyStepIndex: number,
): Promise<number> {
  let bytes = 0;
  for (const cache of caches) {
    const encoder = createChunkEncoder(profileWith(profile, setting, keyStepIndex), {
      step: stepOf(keyStepIndex),
      sinks: cache.firstToken,
      window: COMPRESS_DEFAULTS.window,
      means: cache.means,
    });
    const tokenCount = cache.firstToken + cache.tokens;
    for (const range of chunksOf(tokenCount)) {
      const ranks = encoder.ranks(range, tokenCount);
      const leading = (stream: StreamKind): Float32Array => {
        const rank = ranks[stream];
        const out = new Float32Array((range.endToken - range.startToken) * rank); // [tokens, rank]
        for (let t = range.startToken; t < range.endToken; t++) {
          const from = (t - cache.firstToken) * profile.rank[stream];
          out.set(cache[stream].subarray(from, from + rank), (t - range.startToken) * rank);
        }
        return out;
      };
      const chunks = await encoder.encode({ key: leading('key'), value: leading('value') }, range, tokenCount);
      for (const stream of STREAMS) bytes += chunks[stream].stored.length;
    }
  }
  return bytes;
}

/**
 * The step at which `bytesAt` comes nearest to `targetBytes`, searched from `firstStepIndex` on by secants of
 * log2(bytes). Sizes fall as steps grow; an index more or less is 0.3 % of size.
 */
export async function stepForBytes(
  targetBytes: number,
  firstStepIndex: number,
  bytesAt: (keyStepIndex: number) => Promise<number>,
): Promise<{ readonly keyStepIndex: number; readonly codedBytes: number }> {
  const seen = new Map<number, number>();
  const missBy = (bytes: number): number => Math.log2(bytes / targetBytes);
  let slope = USUAL_SLOPE / SCALE_UNITS;
  let at = firstStepIndex;
  for (let tries = 0; tries < MOST_TRIES && !seen.has(at); tries++) {
    const bytes = await bytesAt(at);
    const miss = missBy(bytes);
    for (const [other, otherBytes] of [...seen].slice(-1)) {
      slope = Math.min(LEAST_SLOPE / SCALE_UNITS, (miss - missBy(otherBytes)) / (at - other));
    }
    seen.set(at, bytes);
    if (Math.abs(miss) <= TOLERANCE) break;
    const limit = MOST_MOVE * SCALE_UNITS;
    at += Math.max(-limit, Math.min(limit, Math.round(-miss / slope)));
  }
  const [keyStepIndex, bytes] = [...seen].toSorted(([, a], [, b]) => Math.abs(missBy(a)) - Math.abs(missBy(b)))[0] as [
    number,
    number,
  ]; // at least one was looked at
  return { keyStepIndex, codedBytes: bytes };
}

function chunksOf(tokenCount: number) {
  const { sinks, chunkTokens } = COMPRESS_DEFAULTS;
  return layOutTokens(tokenCount, { sinks, chunkTokens, window: 0, exactRanges: [] }).chunks;
}
