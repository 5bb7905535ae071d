// How restoring compares with prefilling as contexts grow, timed on this machine with one document.
// Does not know: quality, how it is drawn.

import { createChunkEncoder, ranksInUse } from '../cache/chunk-coder.ts';
import type { CodingOptions } from '../cache/chunk-seam.ts';
import { COMPRESS_DEFAULTS, compressState } from '../cache/compress.ts';
import { restoreContainer } from '../cache/restore.ts';
import type { Transforms } from '../cache/transforms.ts';
import { openTransforms } from '../cache/transforms.ts';
import { openContainer } from '../container/reader.ts';
import { memoryTarget } from '../container/target.ts';
import type { StateView } from '../engines/llama/state.ts';
import { parseState } from '../engines/llama/state.ts';
import { STREAMS } from '../base/geometry.ts';
import type { CloseUpOptions } from './close-up.ts';

/** Timed restores of one length; the median counts. */
const TIMED_RUNS = 3;
/** Parts of the prefix at which restoring is timed. */
const TIMED_SHARES = [1 / 8, 1 / 4, 1 / 2, 3 / 4, 1];

export interface TimePoint {
  readonly tokens: number;
  readonly elapsedMs: number;
}

type TimingOptions = Pick<
  CloseUpOptions,
  'context' | 'transforms' | 'ratios' | 'sinks' | 'window' | 'modes' | 'signal'
>;

/** Restoring from memory against prefilling, on this machine. */
export interface RestoreTimes {
  readonly ratio: number;
  /** Sinks and an exact window, which are copied, not decoded. */
  readonly exactTokens: number;
  readonly prefill: readonly TimePoint[];
  /** Bases loaded; medians. */
  readonly restore: readonly TimePoint[];
  /** Reading and preparing the bases, once per process. */
  readonly loadBasesMs: number;
}

/** The ratio nearest the paper's 16. */
export function middleRatio(ratios: readonly number[]): number {
  const distance = (ratio: number): number => Math.abs(Math.log2(ratio / COMPRESS_DEFAULTS.ratio));
  return ratios.toSorted((a, b) => distance(a) - distance(b))[0] ?? COMPRESS_DEFAULTS.ratio;
}

/** Elapsed time after every batch that the engine computes. */
export async function timePrefill({ context, signal }: TimingOptions, tokens: Int32Array): Promise<TimePoint[]> {
  const points = new Map<number, number>();
  context.clear();
  const startedMs = performance.now();
  await context.decode(tokens, {
    logits: 'none',
    signal,
    onEvent: (event) => {
      if (event.type === 'progress' && event.done > 0) points.set(event.done, performance.now() - startedMs);
    },
  });
  points.set(tokens.length, performance.now() - startedMs);
  return [...points].map(([count, elapsedMs]) => ({ tokens: count, elapsedMs }));
}

/** Restores growing parts of the prefix at the ratio nearest the paper's 16. Leaves the context's cache shortened. */
export async function timeRestores(
  options: TimingOptions,
  tokens: Int32Array,
  prefill: readonly TimePoint[],
): Promise<RestoreTimes> {
  const { context, transforms, ratios, sinks, window, modes, signal } = options;
  const ratio = middleRatio(ratios);
  const full = parseState(context.getState());
  const loadBasesMs = await timeLoading(transforms, full, { ratio, sinks, window, ...modes });
  const { exactSinks, exactWindow } = createChunkEncoder(transforms.profile, { ratio, sinks, window, ...modes });
  const restore: TimePoint[] = [];
  const lengths = TIMED_SHARES.map((part) => Math.round(tokens.length * part)).filter(
    (length) => length > sinks + window,
  );
  for (const length of lengths.toReversed()) {
    context.truncate(0, length);
    const target = memoryTarget();
    const kept = tokens.subarray(0, length);
    const settings = { ratio, sinks, window, ...modes, tokens: kept, signal };
    await compressState(context.getState(), transforms, target, settings);
    const container = await openContainer(target.bytes());
    try {
      const runs: number[] = [];
      for (let run = 0; run < TIMED_RUNS; run++) {
        runs.push((await restoreContainer(container, transforms, { vTransposed: full.vTransposed, signal })).elapsedMs);
      }
      restore.unshift({ tokens: length, elapsedMs: runs.toSorted((a, b) => a - b)[TIMED_RUNS >> 1] ?? 0 });
    } finally {
      await container.close();
    }
  }
  return { ratio, exactTokens: exactSinks + exactWindow, prefill, restore, loadBasesMs };
}

async function timeLoading({ profile, backend }: Transforms, view: StateView, coding: CodingOptions): Promise<number> {
  const [, newest] = ranksInUse(profile, coding);
  const fresh = openTransforms(profile, backend);
  const startedMs = performance.now();
  try {
    for (const stream of STREAMS) {
      const element = stream === 'key' ? view.keyType : view.valueType;
      await fresh.synthesis(stream, newest[stream], element);
    }
    return performance.now() - startedMs;
  } finally {
    fresh.close();
  }
}
