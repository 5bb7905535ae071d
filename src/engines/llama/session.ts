// Opening models: checks the file, loads it, tokenises, makes contexts. Also rewrites weights to f32 or f16.
// Does not know caches' bytes (state.ts) or what contexts are used for.

import { rename, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { KvtcError, invariant } from '../../base/errors.ts';
import { throwIfAborted } from '../../base/events.ts';
import { clearEngineErrors, engineErrors } from '../../native/log.ts';
import type { ModelIdentity } from '../../profile/profile.ts';
import { modelIdentity } from './architecture.ts';
import type { Pointer } from './bindings.ts';
import { callAsync, llamaLibrary } from './bindings.ts';
import { createContext } from './context.ts';
import { readGguf } from './gguf.ts';
import type { ContextOptions, LlamaContext } from './llama-context.ts';

export interface OpenModelOptions {
  /** Threads of its contexts unless they say otherwise; default all of the machine. */
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface TokenizeOptions {
  /** Adds the tokens the model wants at the start (and end); default true. */
  readonly addSpecial?: boolean | undefined;
  /** Reads control tokens written out in the text as such; default false, so that text stays text. */
  readonly parseSpecial?: boolean | undefined;
}

export type { ContextOptions, DecodeOptions, LlamaContext } from './llama-context.ts';
export type { TappedTensor } from './tap.ts';

/** A loaded model. Contexts still open are closed with it; memory goes once their running calls have ended. */
export interface LlamaModel {
  readonly path: string;
  readonly identity: ModelIdentity;
  /** llama.cpp release that runs it, such as `v0.4.0`. */
  readonly engine: string;
  readonly vocabSize: number;
  /** Tokens the model was trained for. */
  readonly trainedContext: number;
  /** True when tokenize with addSpecial begins with a start token. */
  readonly addBos: boolean;
  /** Token ids of a text. Throws KVTC_MODEL_UNSUPPORTED when the file has no vocabulary. */
  tokenize(text: string, options?: TokenizeOptions): Int32Array;
  /** Text of token ids, control tokens written out; bytes that are no UTF-8 become U+FFFD. */
  detokenize(tokens: Int32Array): string;
  /** True for tokens that end a turn or a text. */
  isEndOfGeneration(token: number): boolean;
  createContext(options: ContextOptions): Promise<LlamaContext>;
  close(): void;
  [Symbol.dispose](): void;
}

/** llama.cpp's numbers for the two pairings. */
const ENGINE_ROPE_TYPES = { interleaved: 0, 'half-split': 2 } as const;
/** llama.cpp's number for a file without vocabulary. */
const VOCABULARY_NONE = 0;

/**
 * Opens a GGUF model. Throws KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED, KVTC_MODEL_UNSUPPORTED and KVTC_ROPE_UNSUPPORTED
 * (all decided from the file before the engine sees it), KVTC_ENGINE_MISSING, KVTC_ENGINE_VERSION, KVTC_ENGINE_FAILED
 * with the engine's own words, KVTC_ABORTED. The signal is looked at before and after the load.
 */
export async function openModel(path: string, options: OpenModelOptions = {}): Promise<LlamaModel> {
  throwIfAborted(options.signal);
  const identity = await modelIdentity(await readGguf(path));
  throwIfAborted(options.signal);
  const library = llamaLibrary();
  clearEngineErrors();
  const handle = await callAsync(library.modelLoad, path, library.modelDefaults());
  if (handle === null) {
    throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp cannot load ${path}: ${engineErrors()}`, { path });
  }
  try {
    throwIfAborted(options.signal);
    checkAgainstFile(handle, identity);
  } catch (error) {
    library.modelFree(handle);
    throw error;
  }
  return new Model(path, identity, handle, options.threads ?? availableParallelism());
}

/** The engine must see the model as the file reader does; a difference would mean rows read wrongly. */
function checkAgainstFile(handle: Pointer, { architecture, geometry, rope }: ModelIdentity): void {
  const library = llamaLibrary();
  const layers = library.modelLayers(handle);
  const kvHeads = library.modelKvHeads(handle);
  const ropeType = library.modelRopeType(handle);
  const recurrent = library.modelIsRecurrent(handle) || library.modelIsHybrid(handle);
  const window = library.modelWindow(handle);
  const problems = [
    recurrent ? 'it has recurrent layers' : null,
    window > 0 ? `it attends through a sliding window of ${window}` : null,
    layers !== geometry.layers ? `the engine sees ${layers} layers, the file reader ${geometry.layers}` : null,
    kvHeads !== geometry.kvHeads ? `the engine sees ${kvHeads} KV heads, the file reader ${geometry.kvHeads}` : null,
    ropeType !== ENGINE_ROPE_TYPES[rope.pairing] ? `the engine gives it RoPE type ${ropeType}` : null,
  ].filter((problem) => problem !== null);
  if (problems.length === 0) return;
  throw new KvtcError('KVTC_MODEL_UNSUPPORTED', `this ${architecture} model is not handled: ${problems.join('; ')}`, {
    architecture,
    reason: problems.join('; '),
  });
}

class Model implements LlamaModel {
  readonly path: string;
  readonly identity: ModelIdentity;
  readonly engine: string;
  readonly vocabSize: number;
  readonly trainedContext: number;
  readonly addBos: boolean;
  readonly #handle: Pointer;
  readonly #vocab: Pointer;
  readonly #hasVocabulary: boolean;
  readonly #threads: number;
  readonly #contexts = new Set<LlamaContext>();
  #closed = false;

  constructor(path: string, identity: ModelIdentity, handle: Pointer, threads: number) {
    const library = llamaLibrary();
    this.path = path;
    this.identity = identity;
    this.engine = library.release;
    this.#handle = handle;
    this.#threads = threads;
    this.#vocab = library.modelVocab(handle);
    this.#hasVocabulary = library.vocabType(this.#vocab) !== VOCABULARY_NONE;
    this.vocabSize = library.vocabTokens(this.#vocab);
    this.trainedContext = library.modelTrainedContext(handle);
    this.addBos = this.#hasVocabulary && library.vocabAddBos(this.#vocab);
  }

  tokenize(text: string, options: TokenizeOptions = {}): Int32Array {
    this.#requireVocabulary();
    const library = llamaLibrary();
    const bytes = new TextEncoder().encode(text);
    const { addSpecial = true, parseSpecial = false } = options;
    const fill = (out: Int32Array): number =>
      library.tokenize(this.#vocab, bytes, bytes.length, out, out.length, addSpecial, parseSpecial);
    let tokens = new Int32Array(bytes.length + 2);
    let count = fill(tokens);
    if (count < 0) {
      tokens = new Int32Array(-count);
      count = fill(tokens);
    }
    invariant(count >= 0 && count <= tokens.length, 'tokenize fits its second buffer');
    return tokens.slice(0, count);
  }

  detokenize(tokens: Int32Array): string {
    this.#requireVocabulary();
    this.#requireTokens(tokens);
    const library = llamaLibrary();
    const fill = (out: Uint8Array): number =>
      library.detokenize(this.#vocab, tokens, tokens.length, out, out.length, false, true);
    let bytes = new Uint8Array(64 + tokens.length * 8);
    let count = fill(bytes);
    if (count < 0) {
      bytes = new Uint8Array(-count);
      count = fill(bytes);
    }
    invariant(count >= 0 && count <= bytes.length, 'detokenize fits its second buffer');
    return new TextDecoder().decode(bytes.subarray(0, count));
  }

  isEndOfGeneration(token: number): boolean {
    return this.#hasVocabulary && llamaLibrary().vocabIsEog(this.#vocab, token);
  }

  async createContext(options: ContextOptions): Promise<LlamaContext> {
    invariant(!this.#closed, 'model is open');
    const context = await createContext(
      { handle: this.#handle, identity: this.identity, vocabSize: this.vocabSize, threads: this.#threads },
      options,
      (closed) => {
        this.#contexts.delete(closed);
        this.#freeWhenUnused();
      },
    );
    this.#contexts.add(context);
    return context;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#contexts.size === 0) this.#freeWhenUnused();
    else for (const context of this.#contexts) context.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #freeWhenUnused(): void {
    if (this.#closed && this.#contexts.size === 0) llamaLibrary().modelFree(this.#handle);
  }

  #requireVocabulary(): void {
    invariant(!this.#closed, 'model is open');
    if (this.#hasVocabulary) return;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', `${this.path} has no vocabulary, so text cannot be tokenised`, {
      path: this.path,
    });
  }

  #requireTokens(tokens: Int32Array): void {
    const wrong = tokens.find((token) => token < 0 || token >= this.vocabSize);
    if (wrong === undefined) return;
    throw new KvtcError('KVTC_OPTION_INVALID', `token ${wrong} is not in the vocabulary of ${this.vocabSize}`, {
      token: wrong,
      vocabSize: this.vocabSize,
    });
  }
}

/** llama.cpp's file and tensor type numbers for plain floats. */
const FLOAT_TYPES = { f32: 0, f16: 1 } as const;

/**
 * Writes a copy of a model with all weights as f32 or f16: the same values with exact arithmetic, because quantised
 * weights round activations to 8 bits and so amplify tiny changes of a cache. Written beside, then renamed; a copy that
 * failed leaves nothing. Throws KVTC_ENGINE_FAILED with the engine's words, KVTC_WRITE_FAILED.
 */
export async function quantizeModel(inPath: string, outPath: string, type: 'f32' | 'f16'): Promise<void> {
  await readGguf(inPath);
  const library = llamaLibrary();
  const partial = `${outPath}.part`;
  const parameters = {
    ...library.quantizeDefaults(),
    nthread: availableParallelism(),
    ftype: FLOAT_TYPES[type],
    output_tensor_type: FLOAT_TYPES[type],
    token_embedding_type: FLOAT_TYPES[type],
    allow_requantize: true,
    pure: true,
  };
  clearEngineErrors();
  try {
    const code = await callAsync(library.quantize, inPath, partial, parameters);
    if (code !== 0) {
      throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp cannot rewrite ${inPath} as ${type}: ${engineErrors()}`, {
        code,
        inPath,
      });
    }
    await rename(partial, outPath).catch((cause: unknown) => {
      throw new KvtcError('KVTC_WRITE_FAILED', `cannot write ${outPath}`, { path: outPath }, { cause });
    });
  } catch (error) {
    await rm(partial, { force: true }).catch(() => undefined);
    throw error;
  }
}
