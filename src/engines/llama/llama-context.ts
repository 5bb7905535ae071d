// The contract of a context: options and methods. Implemented by context.ts, made by LlamaModel.createContext.

import type { RunOptions } from '../../base/events.ts';
import type { CacheType } from '../../base/geometry.ts';
import type { StateView } from './state-layout.ts';
import type { TensorTap } from './tap.ts';

export interface ContextOptions {
  /** Tokens one sequence can hold; rounded up to 256 by the engine. With `unified`, all sequences share them. */
  readonly contextTokens: number;
  /** Most tokens of one decode with logits `all`; default: contextTokens. */
  readonly batchTokens?: number | undefined;
  /** Tokens computed at once. 512 keeps working memory low at full speed. */
  readonly microBatchTokens?: number | undefined;
  /** Default f16. Quantised types need heads of a multiple of 32; a context of q5 or q4 gives no states out and takes none. */
  readonly keyType?: CacheType | undefined;
  readonly valueType?: CacheType | undefined;
  /** On by default; off stores values channel-major and computes attention in full precision. */
  readonly flashAttention?: boolean | undefined;
  /** Sequences the context holds; default 1. */
  readonly sequences?: number | undefined;
  /** One pool of cells for all sequences, so that copies share cells and states have one stream. Default false. */
  readonly unified?: boolean | undefined;
  readonly threads?: number | undefined;
  /** Watches tensors of the graph as they are computed; slow, for tests and measurements. */
  readonly tap?: TensorTap | undefined;
}

export interface DecodeOptions extends RunOptions {
  /** Positions to compute logits for; default `last`. */
  readonly logits?: 'none' | 'last' | 'all' | undefined;
  readonly sequence?: number | undefined;
  /** Position of the first token; default: after the sequence's last, and nothing else unless the sequence is empty. */
  readonly startPosition?: number | undefined;
}

/** A context. One call at a time; close() waits for the running one. */
export interface LlamaContext {
  /** Tokens one sequence can hold, as the engine rounded it. */
  readonly contextTokens: number;
  readonly batchTokens: number;
  readonly sequences: number;
  readonly keyType: CacheType;
  readonly valueType: CacheType;
  readonly vTransposed: boolean;
  /** Streams its states have. */
  readonly streams: number;
  /** Time that all decode calls have taken together. */
  readonly decodeMs: number;
  /**
   * Runs tokens through the model on the thread pool. Long lists run in micro-batches with a progress event (`prefill`)
   * after each, unless logits are wanted for all. A failed or cancelled call removes what it had added.
   * Throws KVTC_PROMPT_EMPTY, KVTC_PROMPT_TOO_LONG before the engine is called, KVTC_OPTION_INVALID for ids outside the
   * vocabulary, KVTC_ABORTED, KVTC_ENGINE_FAILED.
   */
  decode(tokens: Int32Array, options?: DecodeOptions): Promise<void>;
  /**
   * Logits of the last decode, f32[count, vocabulary], in batch order. A view of the engine's memory: the next decode
   * and close() empty it (length 0), so copy what is to be kept.
   */
  logits(count: number): Float32Array;
  /** Positions a sequence holds, end exclusive; null when it is empty. */
  positionRange(sequence?: number): { readonly startPosition: number; readonly endPosition: number } | null;
  /** Empties all sequences. */
  clear(): void;
  /** Removes positions from `fromPosition` on. */
  truncate(sequence: number, fromPosition: number): void;
  /** Makes sequence `to` a copy of `from`; free of cost when unified. */
  copySequence(from: number, to: number): void;
  /** The state of a sequence: a new buffer in the blob format of state-layout.ts. */
  getState(sequence?: number): Uint8Array<ArrayBuffer>;
  /**
   * Replaces a sequence by the state of a blob. The bytes are parsed and compared with this context first; a blob that
   * fails leaves the sequence as it was. Throws KVTC_STATE_MALFORMED, KVTC_STATE_UNSUPPORTED, KVTC_STATE_MISMATCH,
   * KVTC_ENGINE_FAILED.
   */
  setState(bytes: Uint8Array, sequence?: number): StateView;
  close(): void;
  [Symbol.dispose](): void;
}
