// `kvtc demo`: one real model, one held-out text, its cache kept as a file and taken up again; every number measured.
// Does not know: where the model and the texts come from.

import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { calibrate } from '../cache/calibrate.ts';
import type { CompressResult } from '../cache/compress.ts';
import { COMPRESS_DEFAULTS, compressState } from '../cache/compress.ts';
import { ranksInUse } from '../cache/chunk-coder.ts';
import { generateGreedy, rewindToken } from '../cache/prompt.ts';
import { restoreContainer } from '../cache/restore.ts';
import type { Transforms } from '../cache/transforms.ts';
import { openTransforms } from '../cache/transforms.ts';
import { STREAMS } from '../base/geometry.ts';
import type { TextGroup } from '../calibration/sample.ts';
import { openContainer } from '../container/reader.ts';
import type { ContainerPart } from '../container/types.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { openProfile } from '../profile/open-profile.ts';
import { hashTokens } from '../calibration/sample.ts';
import type { Scores } from './metrics.ts';
import { meanScores } from './metrics.ts';
import { createReference, runDocument } from './protocol.ts';
import type { Treatment } from './treatment.ts';
import { floorTreatment } from './treatment.ts';

const PREFIX_TOKENS = 3072;
const SHAPE = { prefixTokens: PREFIX_TOKENS, continuationTokens: 512, copyTokens: 256, sliceTokens: 256 } as const;
const GENERATED_TOKENS = 40;

export interface DemoOptions extends RunOptions {
  readonly modelPath: string;
  /** Kept from run to run: calibrated when it is not there. */
  readonly profilePath: string;
  readonly containerPath: string;
  readonly calibrationTexts: readonly TextGroup[];
  /** A text that no calibration has seen. */
  readonly heldOut: { readonly source: string; readonly text: string };
  readonly ratio?: number | undefined;
  readonly threads?: number | undefined;
}

export interface DemoResult {
  readonly model: string;
  readonly text: string;
  readonly prefixTokens: number;
  readonly ratio: number;
  readonly rawBytes: number;
  readonly storedBytes: number;
  readonly parts: readonly { readonly name: string; readonly byteLength: number }[];
  readonly paperRatio: number;
  readonly effectiveRatio: number;
  readonly klNats: number;
  /** The same measure for the exact cache with its three lowest mantissa bits cleared: what the engine's rounding costs. */
  readonly floorKlNats: number;
  readonly copyKlNats: number;
  readonly top1Agreement: number;
  readonly perplexityExact: number;
  readonly perplexityRestored: number;
  readonly prefillMs: number;
  readonly compressMs: number;
  /** File to state in the engine, bases loaded. */
  readonly restoreMs: number;
  readonly loadBasesMs: number;
  /** 0 when the profile was there already. */
  readonly calibrateSeconds: number;
  readonly peakRssBytes: number;
  readonly containerPath: string;
  readonly profilePath: string;
  readonly generatedExact: string;
  readonly generatedRestored: string;
}

/** Runs the demo. Errors of every room may come through; KVTC_PROMPT_EMPTY when the held-out text is too short. */
export async function demo(options: DemoOptions): Promise<DemoResult> {
  const { signal, onEvent } = options;
  const ratio = options.ratio ?? COMPRESS_DEFAULTS.ratio;
  let calibrateSeconds = 0;
  if (!existsSync(options.profilePath)) {
    const startedMs = performance.now();
    await calibrate({
      model: options.modelPath,
      texts: options.calibrationTexts,
      output: options.profilePath,
      codec: 'paper',
      threads: options.threads,
      signal,
      onEvent,
    });
    calibrateSeconds = (performance.now() - startedMs) / 1000;
  }
  const profile = await openProfile(options.profilePath);
  const backend = openGgmlBackend({ threads: options.threads });
  const transforms = openTransforms(profile, backend, { model: options.modelPath });
  const model = await openModel(options.modelPath, { threads: options.threads, signal });
  try {
    const tokens = model.tokenize(options.heldOut.text, { addSpecial: false });
    const length = SHAPE.prefixTokens + SHAPE.continuationTokens;
    if (tokens.length < length) {
      throw new KvtcError(
        'KVTC_PROMPT_EMPTY',
        `the held-out text has ${tokens.length} tokens; the demo needs ${length}`,
      );
    }
    const loadBasesMs = await loadBases(transforms, ratio);
    const context = await model.createContext({ contextTokens: length, batchTokens: SHAPE.sliceTokens });
    const run = await judge(model, context, transforms, tokens.slice(0, length), ratio, options);
    const { stored, restored, exactState, restoredState } = run;
    const restoredScores = meanScores(restored.continuation);
    const generate = async (state: Uint8Array): Promise<string> => {
      context.clear();
      context.setState(state);
      await context.decode(rewindToken(context, tokens.subarray(0, PREFIX_TOKENS)), { logits: 'last', signal });
      return model.detokenize(await generateGreedy(model, context, GENERATED_TOKENS, { signal }));
    };
    return {
      model: model.identity.name,
      text: options.heldOut.source,
      prefixTokens: PREFIX_TOKENS,
      ratio,
      rawBytes: stored.rawBytes,
      storedBytes: stored.storedBytes,
      parts: sumParts(stored.parts),
      paperRatio: stored.paperRatio,
      effectiveRatio: stored.effectiveRatio,
      klNats: restoredScores.klNats,
      floorKlNats: meanScores(run.floor).klNats,
      copyKlNats: meanScores(restored.copy).klNats,
      top1Agreement: restoredScores.top1Agreement,
      perplexityExact: meanScores(run.exact).perplexity,
      perplexityRestored: restoredScores.perplexity,
      prefillMs: run.prefillMs,
      compressMs: stored.elapsedMs,
      restoreMs: run.restoreMs,
      loadBasesMs,
      calibrateSeconds,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      containerPath: options.containerPath,
      profilePath: options.profilePath,
      generatedExact: await generate(exactState),
      generatedRestored: await generate(restoredState),
    };
  } finally {
    model.close();
    transforms.close();
    backend.close();
    await profile.close();
  }
}

interface Judged {
  readonly stored: CompressResult;
  readonly exact: Scores;
  readonly restored: { readonly continuation: Scores; readonly copy: Scores };
  readonly floor: Scores;
  readonly prefillMs: number;
  readonly restoreMs: number;
  readonly exactState: Uint8Array;
  readonly restoredState: Uint8Array;
}

/** Prefills the text once, then continues from the exact cache, from the file's, and from the perturbed exact one. */
async function judge(
  model: LlamaModel,
  context: LlamaContext,
  transforms: Transforms,
  tokens: Int32Array,
  ratio: number,
  { containerPath, heldOut, signal, onEvent }: DemoOptions,
): Promise<Judged> {
  const kept: { stored?: CompressResult; exactState?: Uint8Array; restoredState?: Uint8Array; restoreMs?: number } = {};
  const throughFile: Treatment = {
    label: 'file',
    ratio,
    settings: {},
    apply: async (state, prefix) => {
      await rm(containerPath, { force: true });
      const stored = await compressState(state, transforms, containerPath, {
        ratio,
        tokens: prefix,
        engine: `llama.cpp ${model.engine}`,
        signal,
      });
      const startedMs = performance.now();
      const container = await openContainer(containerPath);
      const restored = await restoreContainer(container, transforms, { signal }).finally(() => container.close());
      context.clear();
      context.setState(restored.state);
      const restoreMs = performance.now() - startedMs;
      Object.assign(kept, { stored, exactState: state, restoredState: restored.state, restoreMs });
      const { paperRatio, effectiveRatio, storedBytes } = stored;
      return {
        state: restored.state,
        paperRatio,
        effectiveRatio,
        storedBytes,
        compressMs: stored.elapsedMs,
        restoreMs,
      };
    },
  };
  const results = new Map<Treatment, Parameters<Parameters<typeof runDocument>[2]['onResult']>[1]>();
  const total = SHAPE.prefixTokens + 3 * (SHAPE.continuationTokens + SHAPE.copyTokens);
  let decoded = 0;
  await runDocument(
    { kind: 'demo', source: heldOut.source, tokens, sha256: hashTokens(tokens) },
    [throughFile, floorTreatment],
    {
      context,
      shape: SHAPE,
      reference: createReference(SHAPE, model.vocabSize),
      signal,
      onResult: (treatment, result) => {
        results.set(treatment, result);
        return Promise.resolve();
      },
      onDecoded: (count) => {
        decoded += count;
        onEvent?.({ type: 'progress', phase: 'judge', done: decoded, total, unit: 'tokens' });
      },
    },
  );
  const file = results.get(throughFile);
  const floor = results.get(floorTreatment);
  const { stored, exactState, restoredState, restoreMs } = kept;
  if (!file || !floor || !stored || !exactState || !restoredState || restoreMs === undefined) {
    throw new Error('the protocol ended without results');
  }
  return {
    stored,
    exact: file.continuationExact,
    restored: { continuation: file.continuation, copy: file.copy },
    floor: floor.continuation,
    prefillMs: file.prefillMs,
    restoreMs,
    exactState,
    restoredState,
  };
}

/** Makes all four matrices ready, so that compress and restore are timed as in a running program. */
async function loadBases(transforms: Transforms, ratio: number): Promise<number> {
  const startedMs = performance.now();
  for (const ranks of ranksInUse(transforms.profile, { ratio, window: COMPRESS_DEFAULTS.window })) {
    for (const stream of STREAMS) {
      await transforms.analysis(stream, ranks[stream], 'f16');
      await transforms.synthesis(stream, ranks[stream], 'f16');
    }
  }
  return performance.now() - startedMs;
}

function sumParts(parts: readonly ContainerPart[]): { name: string; byteLength: number }[] {
  const sums = new Map<string, number>();
  for (const { kind, stream, byteLength } of parts) {
    const name = stream === undefined ? kind : `${stream} ${kind}`;
    sums.set(name, (sums.get(name) ?? 0) + byteLength);
  }
  return [...sums].map(([name, byteLength]) => ({ name, byteLength }));
}
