// One llama.cpp context: decoding, logits, sequences, state bytes in and out.
// Nothing reaches the engine unchecked: token ids, counts and state bytes are compared with the context first, because
// the engine trusts them or ends the process. Does not know what is decoded or why.

import koffi from 'koffi';
import { KvtcError, invariant } from '../../base/errors.ts';
import { throwIfAborted } from '../../base/events.ts';
import type { CacheType } from '../../base/geometry.ts';
import { isBlockType } from '../../base/geometry.ts';
import { clearEngineErrors, engineErrors } from '../../native/log.ts';
import { newThreadPool } from '../../native/thread-pool.ts';
import type { ThreadPool } from '../../native/thread-pool.ts';
import type { ModelIdentity } from '../../profile/profile.ts';
import { createAbortFlag } from './abort-flag.ts';
import type { AbortFlag } from './abort-flag.ts';
import type { BatchArrays } from './batch.ts';
import { batchArrays, fillBatch } from './batch.ts';
import type { Pointer } from './bindings.ts';
import { callAsync, llamaLibrary } from './bindings.ts';
import type { ContextOptions, DecodeOptions, LlamaContext } from './llama-context.ts';
import type { StateView } from './state-layout.ts';
import { GGML_ELEMENT, OTHER_TYPES, parseState } from './state-layout.ts';
import { requireStateFits } from './state-fit.ts';
import { attachTap } from './tap.ts';

/** What a context needs from its model. */
export interface ContextModel {
  readonly handle: Pointer;
  readonly identity: ModelIdentity;
  readonly vocabSize: number;
  readonly threads: number;
}

/** ES2024; detaches without copying, external memory too (structuredClone refuses that). */
type TransferableBuffer = ArrayBuffer & { transfer(): ArrayBuffer };

/** Its threads wait a millisecond for the next token before they sleep; llama.cpp alone starts them for every decode. */
const POOL_POLL = 1;

/** What llama_decode returns when no cells are free, and when the abort callback said so. */
const NO_SLOT = 1;
const ABORTED = 2;

/** Makes a context; see LlamaModel.createContext. Throws KVTC_OPTION_INVALID, KVTC_ENGINE_FAILED. */
export async function createContext(
  model: ContextModel,
  options: ContextOptions,
  onClose: (context: LlamaContext) => void,
): Promise<LlamaContext> {
  const library = llamaLibrary();
  const { keyType = 'f16', valueType = 'f16', flashAttention = true, unified = false } = options;
  const contextTokens = positive('contextTokens', options.contextTokens);
  const sequences = positive('sequences', options.sequences ?? 1, 256);
  const batchTokens = positive('batchTokens', options.batchTokens ?? contextTokens);
  const threads = positive('threads', options.threads ?? model.threads, 512);
  const microBatchTokens = Math.min(positive('microBatchTokens', options.microBatchTokens ?? 512), batchTokens);
  if (isBlockType(valueType) && !flashAttention) {
    throw new KvtcError('KVTC_OPTION_INVALID', `${valueType} values need flash attention`);
  }
  const abort = createAbortFlag();
  const tap = options.tap === undefined ? null : attachTap(options.tap);
  clearEngineErrors();
  const handle = await callAsync(library.contextInit, model.handle, {
    ...library.contextDefaults(),
    n_ctx: contextTokens * (unified ? 1 : sequences),
    n_batch: batchTokens,
    n_ubatch: microBatchTokens,
    n_seq_max: sequences,
    n_threads: threads,
    n_threads_batch: threads,
    flash_attn_type: flashAttention ? 1 : 0,
    type_k: typeCode(keyType),
    type_v: typeCode(valueType),
    kv_unified: unified,
    cb_eval: tap?.callback ?? null,
    abort_callback: abort.callback,
    abort_callback_data: abort.data,
  });
  if (handle === null) {
    tap?.close();
    abort.close();
    throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp cannot make a context: ${engineErrors()}`, { contextTokens });
  }
  const pool = threads > 1 ? newThreadPool(threads, POOL_POLL) : null;
  if (pool !== null) library.attachThreadPool(handle, pool.pointer, pool.pointer);
  return new Context(model, { handle, pool, abort, tap }, onClose, {
    contextTokens: library.contextSequenceTokens(handle),
    batchTokens,
    microBatchTokens,
    sequences,
    streams: unified ? 1 : sequences,
    keyType,
    valueType,
    vTransposed: !flashAttention,
  });
}

/** What a context frees when it closes, the handle first. */
interface Owned {
  readonly handle: Pointer;
  readonly pool: ThreadPool | null;
  readonly abort: AbortFlag;
  readonly tap: ReturnType<typeof attachTap> | null;
}

type Settings = Pick<
  LlamaContext,
  'contextTokens' | 'batchTokens' | 'sequences' | 'keyType' | 'valueType' | 'vTransposed' | 'streams'
> & { readonly microBatchTokens: number };

class Context implements LlamaContext {
  readonly contextTokens: number;
  readonly batchTokens: number;
  readonly sequences: number;
  readonly keyType: CacheType;
  readonly valueType: CacheType;
  readonly vTransposed: boolean;
  readonly streams: number;
  readonly #settings: Settings;
  readonly #model: ContextModel;
  readonly #handle: Pointer;
  readonly #memory: Pointer;
  readonly #pool: ThreadPool | null;
  readonly #abort: AbortFlag;
  readonly #tap: ReturnType<typeof attachTap> | null;
  readonly #onClose: (context: LlamaContext) => void;
  readonly #arrays: BatchArrays;
  #outputs = 0;
  #logits: ArrayBuffer | null = null;
  #busy = false;
  #decodeMs = 0;
  #closing = false;
  #closed = false;

  constructor(
    model: ContextModel,
    { handle, pool, abort, tap }: Owned,
    onClose: (context: LlamaContext) => void,
    settings: Settings,
  ) {
    this.contextTokens = settings.contextTokens;
    this.batchTokens = settings.batchTokens;
    this.sequences = settings.sequences;
    this.keyType = settings.keyType;
    this.valueType = settings.valueType;
    this.vTransposed = settings.vTransposed;
    this.streams = settings.streams;
    this.#settings = settings;
    this.#model = model;
    this.#handle = handle;
    this.#pool = pool;
    this.#abort = abort;
    this.#tap = tap;
    this.#onClose = onClose;
    this.#memory = llamaLibrary().memory(handle);
    this.#arrays = batchArrays(settings.batchTokens);
  }

  async decode(tokens: Int32Array, options: DecodeOptions = {}): Promise<void> {
    const { logits = 'last', sequence = 0, signal, onEvent } = options;
    this.#requireIdle();
    throwIfAborted(signal);
    this.#requireSequence(sequence);
    const heldEnd = this.positionRange(sequence)?.endPosition ?? null;
    const startPosition = options.startPosition ?? heldEnd ?? 0;
    this.#requireFit(tokens, startPosition, heldEnd, logits);
    const step = logits === 'all' ? tokens.length : this.#settings.microBatchTokens;
    const onAbort = (): void => this.#abort.raise();
    const startedMs = performance.now();
    this.#busy = true;
    this.#dropLogits();
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      for (let start = 0; start < tokens.length; start += step) {
        const end = Math.min(start + step, tokens.length);
        const outputs = logits === 'all' || (logits === 'last' && end === tokens.length) ? logits : 'none';
        throwIfAborted(signal);
        await this.#run(tokens.subarray(start, end), startPosition + start, sequence, outputs, signal);
        onEvent?.({ type: 'progress', phase: 'prefill', done: end, total: tokens.length, unit: 'tokens' });
      }
    } catch (error) {
      this.#dropLogits();
      llamaLibrary().memoryRemove(this.#memory, sequence, startPosition, -1);
      throw error;
    } finally {
      signal?.removeEventListener('abort', onAbort);
      this.#abort.lower();
      this.#busy = false;
      this.#decodeMs += performance.now() - startedMs;
      if (this.#closing) this.#free();
    }
  }

  get decodeMs(): number {
    return this.#decodeMs;
  }

  async #run(
    tokens: Int32Array,
    position: number,
    sequence: number,
    outputs: 'none' | 'last' | 'all',
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const batch = fillBatch(this.#arrays, tokens, position, sequence, outputs);
    clearEngineErrors();
    const code = await callAsync(llamaLibrary().decode, this.#handle, batch);
    this.#tap?.rethrow();
    if (code === 0) {
      this.#outputs = outputs === 'none' ? 0 : outputs === 'last' ? 1 : tokens.length;
      return;
    }
    if (code === ABORTED) throwIfAborted(signal);
    if (code === NO_SLOT) {
      throw new KvtcError('KVTC_PROMPT_TOO_LONG', 'the cells shared by the sequences are full', {
        contextTokens: this.contextTokens,
      });
    }
    throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp cannot decode (${code}): ${engineErrors()}`, { code });
  }

  logits(count: number): Float32Array {
    this.#requireIdle();
    invariant(count <= this.#outputs, `the last decode computed ${this.#outputs} rows of logits`);
    if (this.#logits === null) {
      const pointer = llamaLibrary().logits(this.#handle);
      invariant(pointer !== null, 'logits were computed');
      this.#logits = koffi.view(pointer, this.#outputs * this.#model.vocabSize * 4);
    }
    return new Float32Array(this.#logits, 0, count * this.#model.vocabSize);
  }

  positionRange(sequence = 0): { readonly startPosition: number; readonly endPosition: number } | null {
    this.#requireIdle();
    this.#requireSequence(sequence);
    const library = llamaLibrary();
    const startPosition = library.memoryMin(this.#memory, sequence);
    if (startPosition < 0) return null;
    return { startPosition, endPosition: library.memoryMax(this.#memory, sequence) + 1 };
  }

  clear(): void {
    this.#requireIdle();
    llamaLibrary().memoryClear(this.#memory, true);
  }

  truncate(sequence: number, fromPosition: number): void {
    this.#requireIdle();
    this.#requireSequence(sequence);
    if (!llamaLibrary().memoryRemove(this.#memory, sequence, fromPosition, -1)) {
      throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp cannot remove positions from ${fromPosition} on`, {
        sequence,
        fromPosition,
      });
    }
  }

  copySequence(from: number, to: number): void {
    this.#requireIdle();
    this.#requireSequence(from);
    this.#requireSequence(to);
    if (from === to) return;
    const library = llamaLibrary();
    library.memoryRemove(this.#memory, to, -1, -1);
    // Only whole copies: between streams the engine ends the process on partial ones.
    library.memoryCopy(this.#memory, from, to, -1, -1);
  }

  getState(sequence = 0): Uint8Array<ArrayBuffer> {
    this.#requireIdle();
    this.#requireSequence(sequence);
    const library = llamaLibrary();
    const sizeBytes = Number(library.stateSize(this.#handle, sequence));
    // Not zeroed: the engine writes every byte.
    const bytes = new Uint8Array(Buffer.allocUnsafeSlow(sizeBytes).buffer);
    const written = Number(library.stateGet(this.#handle, bytes, sizeBytes, sequence));
    if (written !== sizeBytes) {
      throw new KvtcError('KVTC_ENGINE_FAILED', `llama.cpp wrote ${written} of ${sizeBytes} state bytes`, {
        gotBytes: written,
        expectedBytes: sizeBytes,
      });
    }
    return bytes;
  }

  setState(bytes: Uint8Array, sequence = 0): StateView {
    this.#requireIdle();
    this.#requireSequence(sequence);
    const view = parseState(bytes);
    requireStateFits(view, this, this.#model.identity);
    this.#dropLogits();
    clearEngineErrors();
    const read = Number(llamaLibrary().stateSet(this.#handle, bytes, bytes.length, sequence));
    if (read !== bytes.length) {
      throw new KvtcError(
        'KVTC_ENGINE_FAILED',
        `llama.cpp took ${read} of ${bytes.length} state bytes and emptied the sequence: ${engineErrors()}`,
        { gotBytes: read, expectedBytes: bytes.length },
      );
    }
    return view;
  }

  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    if (this.#busy) this.#abort.raise();
    else this.#free();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #free(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#dropLogits();
    llamaLibrary().contextFree(this.#handle);
    this.#pool?.close();
    this.#tap?.close();
    this.#abort.close();
    this.#onClose(this);
  }

  /** Detaches views handed out: their memory is about to be overwritten or freed. */
  #dropLogits(): void {
    (this.#logits as TransferableBuffer | null)?.transfer();
    this.#logits = null;
    this.#outputs = 0;
  }

  #requireIdle(): void {
    invariant(!this.#closing, 'context is open');
    invariant(!this.#busy, 'context runs one call at a time');
  }

  #requireSequence(sequence: number): void {
    if (Number.isInteger(sequence) && sequence >= 0 && sequence < this.sequences) return;
    throw new KvtcError('KVTC_OPTION_INVALID', `sequence ${sequence} of a context with ${this.sequences}`, {
      sequence,
    });
  }

  #requireFit(tokens: Int32Array, startPosition: number, heldEnd: number | null, logits: string): void {
    if (tokens.length === 0) throw new KvtcError('KVTC_PROMPT_EMPTY', 'there are no tokens to decode');
    const { contextTokens, batchTokens } = this;
    if (!(Number.isInteger(startPosition) && startPosition >= 0 && startPosition === (heldEnd ?? startPosition))) {
      throw new KvtcError(
        'KVTC_OPTION_INVALID',
        `tokens cannot start at position ${startPosition}; the sequence goes on at ${heldEnd ?? 'any from 0'}`,
        { startPosition, heldEnd },
      );
    }
    const neededTokens = startPosition + tokens.length;
    if (neededTokens > contextTokens || (logits === 'all' && tokens.length > batchTokens)) {
      throw new KvtcError(
        'KVTC_PROMPT_TOO_LONG',
        neededTokens > contextTokens
          ? `${tokens.length} tokens from position ${startPosition} need a context of ${neededTokens}; it has ${contextTokens}`
          : `logits of ${tokens.length} tokens at once need batchTokens of as many; the context has ${batchTokens}`,
        { neededTokens, contextTokens, batchTokens },
      );
    }
    const wrong = tokens.find((token) => token < 0 || token >= this.#model.vocabSize);
    if (wrong !== undefined) {
      throw new KvtcError('KVTC_OPTION_INVALID', `token ${wrong} is not in the vocabulary`, { token: wrong });
    }
  }
}

function typeCode(type: CacheType): number {
  for (const [code, name] of [...GGML_ELEMENT, ...OTHER_TYPES]) if (name === type) return code;
  throw new KvtcError('KVTC_OPTION_INVALID', `${String(type)} is no cache type`);
}

function positive(option: string, value: number, limit = 1 << 24): number {
  if (Number.isInteger(value) && value >= 1 && value <= limit) return value;
  throw new KvtcError('KVTC_OPTION_INVALID', `${option} is ${value}; expected 1 to ${limit}`, { option, got: value });
}
