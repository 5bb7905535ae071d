// From prompts and saved states to containers, and from containers back to text, model and profile given by path.
// Does not know: files' layouts, codecs.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { ContainerTarget } from '../container/types.ts';
import { modelIdentity } from '../engines/llama/architecture.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import type { LlamaContext, LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import type { ModelIdentity, Profile } from '../profile/profile.ts';
import type { CodedResult, Coder } from './coder.ts';
import { openCoder } from './coder.ts';
import type { CompressOptions } from './compress.ts';
import type { RatioChoice } from './measured-ratio.ts';
import { chooseRatio } from './measured-ratio.ts';

interface ModelAndProfile {
  /** GGUF file. */
  readonly model: string;
  readonly profile: string | Profile;
  readonly threads?: number | undefined;
}

export interface CompressPromptOptions extends CompressOptions, ModelAndProfile, RatioChoice {
  readonly prompt: string;
  /** Container to write. */
  readonly output: string | ContainerTarget;
}

export interface PromptResult extends CodedResult {
  readonly prefillMs: number;
}

/**
 * Prefills `prompt` in a fresh f16 context and compresses its cache. Throws KVTC_PROMPT_EMPTY, KVTC_PROMPT_TOO_LONG above
 * the trained context, KVTC_MODEL_MISMATCH when the profile is another model's, and as openModel and compressState.
 */
export async function compressPrompt(options: CompressPromptOptions): Promise<PromptResult> {
  return withModel(options, async (model, coder) => {
    const tokens = model.tokenize(options.prompt);
    if (tokens.length === 0) {
      throw new KvtcError('KVTC_PROMPT_EMPTY', 'the prompt has no tokens; there is nothing to keep');
    }
    checkRoom(model, tokens.length, `the prompt has ${tokens.length} tokens`);
    chooseRatio(coder.profile, { ...options, onEvent: undefined }); // what cannot be served fails before the prefill
    const context = await model.createContext({ contextTokens: tokens.length });
    const startedMs = performance.now();
    await context.decode(tokens, { logits: 'none', signal: options.signal, onEvent: options.onEvent });
    const prefillMs = performance.now() - startedMs;
    const engine = `llama.cpp ${model.engine}`;
    const result = await coder.compress(context.getState(), options.output, { engine, ...options, tokens });
    return { ...result, prefillMs };
  });
}

export interface CompressStateCall extends CompressOptions, ModelAndProfile, RatioChoice {
  /** A state file (`ggsq`, as node-llama-cpp and llama-server write it) or the bytes of a sequence state. */
  readonly state: string | Uint8Array;
  readonly output: string | ContainerTarget;
}

/**
 * Compresses a saved state. States do not name their model, so `model` vouches for it: it must be the profile's
 * (KVTC_MODEL_MISMATCH), and the state must have its layers and widths (KVTC_STATE_MISMATCH). The model is not loaded.
 */
export async function compressSaved(options: CompressStateCall): Promise<CodedResult> {
  const identity = await modelIdentity(await readGguf(options.model));
  const coder = await openCoder(options.profile, options);
  try {
    checkModel(identity, coder);
    return await coder.compress(options.state, options.output, options);
  } finally {
    await coder.close();
  }
}

export interface ResumeOptions extends RunOptions, ModelAndProfile {
  readonly container: string | Uint8Array;
  /** Text that follows the kept prompt; may be empty where the container holds token ids. */
  readonly prompt: string;
  /** Tokens to generate at most; default 64. */
  readonly maxTokens?: number | undefined;
  /** Called with each piece of generated text. */
  readonly onText?: ((text: string) => void) | undefined;
}

export interface ResumeResult {
  readonly text: string;
  readonly tokens: Int32Array;
  readonly restoredTokens: number;
  readonly promptTokens: number;
  readonly restoreMs: number;
  readonly promptMs: number;
  readonly generateMs: number;
}

/**
 * Restores a container into a fresh context, feeds `prompt` and continues greedily. Prefills only the new prompt.
 * Throws KVTC_MODEL_MISMATCH, KVTC_PROMPT_TOO_LONG, KVTC_PROMPT_EMPTY, and as openModel and restoreContainer.
 */
export async function resume(options: ResumeOptions): Promise<ResumeResult> {
  const { signal, onEvent } = options;
  const maxTokens = options.maxTokens ?? 64;
  return withModel(options, async (model, coder) => {
    const startedMs = performance.now();
    const restored = await coder.restore(options.container, { signal, onEvent });
    // The start token belongs to the kept prompt.
    const prompt = model.tokenize(options.prompt, { addSpecial: false });
    if (prompt.length === 0 && restored.tokens === null) {
      throw new KvtcError('KVTC_PROMPT_EMPTY', 'the container holds no token ids, so it needs a prompt to go on from');
    }
    const contextTokens = restored.tokenCount + prompt.length + maxTokens;
    checkRoom(
      model,
      contextTokens,
      `${restored.tokenCount} kept, ${prompt.length} new and ${maxTokens} generated tokens`,
    );
    const context = await model.createContext({ contextTokens });
    context.setState(restored.state);
    const restoreMs = performance.now() - startedMs;
    const fed = prompt.length > 0 ? prompt : rewindToken(context, restored.tokens ?? new Int32Array(0));
    await context.decode(fed, { logits: 'last', signal });
    const promptMs = performance.now() - startedMs - restoreMs;
    const tokens = await generateGreedy(model, context, maxTokens, { signal }, options.onText);
    return {
      text: model.detokenize(tokens),
      tokens,
      restoredTokens: restored.tokenCount,
      promptTokens: prompt.length,
      restoreMs,
      promptMs,
      generateMs: performance.now() - startedMs - restoreMs - promptMs,
    };
  });
}

/**
 * Continues greedily from the logits the context holds for its last token, to the end of the text or `maxTokens`.
 * Returns the new tokens. `onText` gets whole characters only.
 */
export async function generateGreedy(
  model: LlamaModel,
  context: LlamaContext,
  maxTokens: number,
  options: RunOptions = {},
  onText?: (text: string) => void,
): Promise<Int32Array> {
  const tokens: number[] = [];
  let printed = 0;
  while (tokens.length < maxTokens) {
    throwIfAborted(options.signal);
    const token = largestIndex(context.logits(1));
    if (model.isEndOfGeneration(token)) break;
    tokens.push(token);
    if (onText !== undefined) {
      const text = model.detokenize(Int32Array.from(tokens));
      // A character split over tokens ends in a replacement character until it is whole.
      if (!text.endsWith('\uFFFD')) {
        onText(text.slice(printed));
        printed = text.length;
      }
    }
    if (tokens.length < maxTokens) {
      await context.decode(Int32Array.of(token), { logits: 'last', signal: options.signal });
    }
  }
  return Int32Array.from(tokens);
}

/** Takes the last kept token out of the cache again: decoding what is returned gives the logits that follow it. */
export function rewindToken(context: LlamaContext, tokens: Int32Array): Int32Array {
  const end = context.positionRange(0)?.endPosition ?? tokens.length;
  context.truncate(0, end - 1);
  return tokens.slice(-1);
}

/** Opens both, checks that they belong together, closes both (and with the model its contexts). */
async function withModel<T>(
  options: ModelAndProfile & RunOptions,
  use: (model: LlamaModel, coder: Coder) => Promise<T>,
): Promise<T> {
  const coder = await openCoder(options.profile, options);
  try {
    const model = await openModel(options.model, options);
    try {
      checkModel(model.identity, coder);
      return await use(model, coder);
    } finally {
      model.close();
    }
  } finally {
    await coder.close();
  }
}

function checkModel(identity: ModelIdentity, coder: Coder): void {
  const got = identity.fingerprint;
  const { fingerprint: expected, name } = coder.profile.model;
  if (got === expected) return;
  throw new KvtcError(
    'KVTC_MODEL_MISMATCH',
    `the model is ${identity.name} (${got.slice(0, 12)}), the profile was made for ${name} (${expected.slice(0, 12)})`,
    { got, expected },
  );
}

function checkRoom(model: LlamaModel, tokens: number, what: string): void {
  if (tokens <= model.trainedContext) return;
  throw new KvtcError(
    'KVTC_PROMPT_TOO_LONG',
    `${what}: more than the ${model.trainedContext} the model was trained for`,
    {
      gotTokens: tokens,
      limitTokens: model.trainedContext,
    },
  );
}

function largestIndex(values: Float32Array): number {
  let index = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[index] as number)) index = i;
  return index;
}
