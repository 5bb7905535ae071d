// `kvtc bench`: speed and memory of this build on this machine, each figure beside the bound it is held to.
// Repeats, takes medians, checks that what it timed is right. Does not know: quality (evaluate.ts), terminals.

import { mkdtemp, rm } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import { STREAMS, streamWidth } from '../base/geometry.ts';
import { ranksInUse } from '../cache/chunk-coder.ts';
import { COMPRESS_DEFAULTS, compressState } from '../cache/compress.ts';
import { restoreContainer } from '../cache/restore.ts';
import type { Transforms } from '../cache/transforms.ts';
import { openTransforms } from '../cache/transforms.ts';
import { openContainer } from '../container/reader.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import type { Profile } from '../profile/profile.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { MemoryFigure } from './bench-memory.ts';
import { idlePeak, measureMemory } from './bench-memory.ts';
import { timeEntropy } from './entropy-speed.ts';

export interface BenchOptions extends RunOptions {
  readonly modelPath: string;
  readonly profilePath: string;
  /** Any text long enough for the longest context measured. */
  readonly text: string;
  readonly ratio?: number | undefined;
  /** Tokens of the timed prefix; default 3 072. */
  readonly tokens?: number | undefined;
  /** Contexts whose peak memory is measured, in processes of their own; default 1 024 and 8 192. */
  readonly memoryTokens?: readonly number[] | undefined;
  /** Timed runs of compress and restore; default 7. */
  readonly runs?: number | undefined;
  readonly threads?: number | undefined;
}

/** Median with the extremes beside it. */
export interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

export interface BenchResult {
  readonly model: string;
  readonly tokens: number;
  readonly ratio: number;
  readonly prefillMs: number;
  readonly compressMs: Spread;
  /** File to state in the engine, bases loaded. */
  readonly restoreMs: Spread;
  /** prefillMs over the median of restoreMs. */
  readonly restoreSpeedup: number;
  readonly compressOverRestore: number;
  /** Reading and quantising the bases of one direction, once per process. */
  readonly loadBasesMs: { readonly compress: number; readonly restore: number };
  /** Matrix products alone, at the restore's shapes. */
  readonly productsGflops: Spread;
  /** What restore would take if only its products took time. */
  readonly restoreBoundMs: number;
  /** Coefficients a second on one thread, of profiles of codec wtc. */
  readonly entropy: { readonly decodePerSecond: Spread; readonly encodePerSecond: Spread } | null;
  readonly memory: readonly MemoryFigure[];
  /** Peak of a process that loads the engine's numeric library and does nothing: part of every peak in `memory`. */
  readonly idlePeakRssBytes: number;
  readonly machine: {
    readonly processor: string;
    readonly threads: number;
    readonly node: string;
    readonly engine: string;
  };
}

/**
 * Runs the benchmark; minutes, most of them the engine's prefill. Throws KVTC_PROMPT_EMPTY when the text is too short,
 * KVTC_PLAN_MISSING, KVTC_MODEL_MISMATCH, and what engine and codec throw.
 */
export async function bench(options: BenchOptions): Promise<BenchResult> {
  const { signal, onEvent } = options;
  const tokens = options.tokens ?? 3072;
  const ratio = options.ratio ?? 16;
  const runs = options.runs ?? 7;
  const memoryTokens = options.memoryTokens ?? [1024, 8192];
  const profile = await openProfile(options.profilePath);
  const backend = openGgmlBackend({ threads: options.threads });
  const transforms = openTransforms(profile, backend, { model: options.modelPath });
  const model = await openModel(options.modelPath, { threads: options.threads, signal });
  const directory = await mkdtemp(join(tmpdir(), 'kvtc-bench-'));
  try {
    checkModel(model, profile);
    const longest = Math.max(tokens, ...memoryTokens);
    const ids = model.tokenize(options.text, { addSpecial: false }).slice(0, longest);
    if (ids.length < longest) {
      throw new KvtcError('KVTC_PROMPT_EMPTY', `the text has ${ids.length} tokens, the benchmark needs ${longest}`);
    }
    const context = await model.createContext({ contextTokens: longest });
    const states = new Map<number, Uint8Array>();
    let prefillMs = 0;
    for (const count of new Set([tokens, ...memoryTokens])) {
      onEvent?.({
        type: 'progress',
        phase: 'prefill',
        done: states.size,
        total: new Set([tokens, ...memoryTokens]).size,
        unit: 'contexts',
      });
      const startedMs = performance.now();
      context.clear();
      await context.decode(ids.slice(0, count), { logits: 'none', signal });
      if (count === tokens) prefillMs = performance.now() - startedMs;
      states.set(count, context.getState());
    }
    const state = states.get(tokens) as Uint8Array;
    const path = join(directory, 'bench.kvtc');
    const timed = await timeCodec(transforms, context, state, path, {
      ratio,
      runs,
      tokens: ids.slice(0, tokens),
      signal,
      onEvent,
    });
    const entropy = await measureEntropy(path, profile, runs);
    const products = await timeProducts(transforms, ratio, runs);
    const memory: MemoryFigure[] = [];
    for (const count of memoryTokens) {
      throwIfAborted(signal);
      onEvent?.({
        type: 'progress',
        phase: 'memory',
        done: memory.length / 2,
        total: memoryTokens.length,
        unit: 'contexts',
      });
      const prefix = { state: states.get(count) as Uint8Array, tokens: ids.slice(0, count) };
      memory.push(...(await measureMemory(options, directory, prefix, ratio)));
    }
    const flops = products.flopsPerToken * coded(tokens);
    return {
      model: model.identity.name,
      tokens,
      ratio,
      prefillMs,
      ...timed,
      restoreSpeedup: prefillMs / timed.restoreMs.median,
      compressOverRestore: timed.compressMs.median / timed.restoreMs.median,
      productsGflops: products.gflops,
      restoreBoundMs: flops / (products.gflops.median * 1e6),
      entropy,
      memory,
      idlePeakRssBytes: await idlePeak(signal),
      machine: {
        processor: cpus()[0]?.model ?? '',
        threads: backend.threads,
        node: process.version,
        engine: model.engine,
      },
    };
  } finally {
    model.close();
    transforms.close();
    backend.close();
    await profile.close();
    await rm(directory, { recursive: true, force: true });
  }
}

interface TimedCodec {
  readonly compressMs: Spread;
  readonly restoreMs: Spread;
  readonly loadBasesMs: { readonly compress: number; readonly restore: number };
}

async function timeCodec(
  transforms: Transforms,
  context: LlamaContext,
  state: Uint8Array,
  path: string,
  { ratio, runs, tokens, signal, onEvent }: RunOptions & { ratio: number; runs: number; tokens: Int32Array },
): Promise<TimedCodec> {
  const used = ranksInUse(transforms.profile, { ratio, window: COMPRESS_DEFAULTS.window });
  const load = async (direction: 'analysis' | 'synthesis'): Promise<number> => {
    const startedMs = performance.now();
    for (const ranks of used) {
      for (const stream of STREAMS) await transforms[direction](stream, ranks[stream], 'f16');
    }
    return performance.now() - startedMs;
  };
  const loadBasesMs = { compress: await load('analysis'), restore: await load('synthesis') };
  const compressMs: number[] = [];
  const restoreMs: number[] = [];
  // One uncounted run warms the graphs and the compiler.
  for (let run = -1; run < runs; run++) {
    throwIfAborted(signal);
    onEvent?.({ type: 'progress', phase: 'time', done: run + 1, total: runs + 1, unit: 'runs' });
    const { elapsedMs } = await compressState(state, transforms, path, { ratio, tokens });
    const startedMs = performance.now();
    const container = await openContainer(path);
    const restored = await restoreContainer(container, transforms).finally(() => container.close());
    context.clear();
    context.setState(restored.state);
    if (run < 0) continue;
    compressMs.push(elapsedMs);
    restoreMs.push(performance.now() - startedMs);
  }
  return { compressMs: spread(compressMs), restoreMs: spread(restoreMs), loadBasesMs };
}

/** Of the container that was timed. */
async function measureEntropy(path: string, profile: Profile, runs: number): Promise<BenchResult['entropy']> {
  if (profile.codec !== 'wtc') return null;
  const container = await openContainer(path);
  try {
    const { symbols, decodeMs, encodeMs } = await timeEntropy(container, profile, runs);
    const perSecond = (times: readonly number[]): Spread => spread(times.map((ms) => (1000 * symbols) / ms));
    return { decodePerSecond: perSecond(decodeMs), encodePerSecond: perSecond(encodeMs) };
  } finally {
    await container.close();
  }
}

/** Coefficients of 256 tokens times the synthesis matrices of both streams, without anything around them. */
async function timeProducts(
  { profile, backend }: Transforms,
  ratio: number,
  runs: number,
): Promise<{ gflops: Spread; flopsPerToken: number }> {
  const [ranks] = ranksInUse(profile, { ratio });
  const batch = 256;
  const repeats = 8;
  let flopsPerToken = 0;
  const seconds = Array.from({ length: runs }, () => 0);
  for (const stream of STREAMS) {
    const rank = ranks[stream];
    const width = streamWidth(profile.model.geometry, stream);
    flopsPerToken += 2 * rank * width;
    const source = profile.stream(stream).synthesis;
    // [p, rank]: any values multiply at the same speed, so the component-major basis is read as rows of the other shape.
    const values = new Float32Array(rank * width);
    await source.read(0, rank, values);
    const read = (start: number, end: number, out: Float32Array): Promise<void> => {
      out.set(values.subarray(start * rank, end * rank));
      return Promise.resolve();
    };
    const matrix = await backend.prepareMatrix({ rows: width, columns: rank, read }, 'q8_0');
    const x = values.slice(0, batch * rank);
    const out = new Float32Array(batch * width);
    await matrix.multiply(x, batch, out);
    for (let run = 0; run < runs; run++) {
      const startedMs = performance.now();
      for (let i = 0; i < repeats; i++) await matrix.multiply(x, batch, out);
      seconds[run] = (seconds[run] as number) + (performance.now() - startedMs) / 1000;
    }
    matrix.close();
  }
  return { gflops: spread(seconds.map((s) => (flopsPerToken * batch * repeats) / s / 1e9)), flopsPerToken };
}

function checkModel(model: LlamaModel, profile: Profile): void {
  const got = model.identity.fingerprint;
  const expected = profile.model.fingerprint;
  if (got !== expected) {
    throw new KvtcError(
      'KVTC_MODEL_MISMATCH',
      `the profile was made for ${profile.model.name}, not for ${model.path}`,
      { got, expected },
    );
  }
}

/** Tokens that go through the transform with the default sinks and window. */
function coded(tokens: number): number {
  return Math.max(0, tokens - COMPRESS_DEFAULTS.sinks - COMPRESS_DEFAULTS.window);
}

function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  return { median: sorted[sorted.length >> 1] ?? NaN, least: sorted[0] ?? NaN, most: sorted.at(-1) ?? NaN };
}
