// The llama.cpp functions and parameter structs this room uses, bound once per process through koffi.
// Struct layouts are those of the releases native/library.ts accepts; size, defaults and version are checked before any
// call. Does not know what the calls are for. Source: llama.h of v0.4.0 and v0.5.0 (same layouts).

import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';
import { KvtcError } from '../../base/errors.ts';
import { loadNativeLibraries } from '../../native/library.ts';

/** An opaque native pointer; koffi gives NULL as null. */
export type Pointer = bigint;
type MaybePointer = Pointer | null;
/** size_t comes back as number or bigint by magnitude: wrap in Number(). */
type Size = number | bigint;
type Bytes = ArrayBufferView;

/** A native function that can also run on libuv's thread pool. */
export type Callable<Arguments extends unknown[], Result> = ((...args: Arguments) => Result) & {
  async(...args: [...Arguments, (error: unknown, result: Result) => void]): void;
};

/** Fields set here; the rest keep the library's defaults. */
export interface ContextParameters {
  n_ctx: number;
  n_batch: number;
  n_ubatch: number;
  n_seq_max: number;
  n_threads: number;
  n_threads_batch: number;
  flash_attn_type: number;
  type_k: number;
  type_v: number;
  kv_unified: boolean;
  cb_eval: MaybePointer;
  abort_callback: MaybePointer;
  abort_callback_data: MaybePointer;
}

export interface QuantizeParameters {
  nthread: number;
  ftype: number;
  output_tensor_type: number;
  token_embedding_type: number;
  allow_requantize: boolean;
  pure: boolean;
}

/** A batch points into the caller's arrays; null fields are filled in by the library. */
export interface Batch {
  readonly n_tokens: number;
  readonly token: Int32Array;
  readonly embd: null;
  readonly pos: Int32Array;
  readonly n_seq_id: Int32Array;
  readonly seq_id: BigUint64Array;
  readonly logits: Int8Array;
}

export interface LlamaLibrary {
  readonly release: string;
  modelDefaults(): { n_gpu_layers: number };
  modelLoad: Callable<[path: string, parameters: object], MaybePointer>;
  modelFree(model: Pointer): void;
  modelLayers(model: Pointer): number;
  modelKvHeads(model: Pointer): number;
  modelRopeType(model: Pointer): number;
  modelWindow(model: Pointer): number;
  modelIsRecurrent(model: Pointer): boolean;
  modelIsHybrid(model: Pointer): boolean;
  modelTrainedContext(model: Pointer): number;
  modelVocab(model: Pointer): Pointer;
  vocabTokens(vocab: Pointer): number;
  vocabType(vocab: Pointer): number;
  vocabAddBos(vocab: Pointer): boolean;
  vocabIsEog(vocab: Pointer, token: number): boolean;
  tokenize(
    vocab: Pointer,
    text: Bytes,
    textBytes: number,
    out: Int32Array,
    capacity: number,
    addSpecial: boolean,
    parseSpecial: boolean,
  ): number;
  detokenize(
    vocab: Pointer,
    tokens: Int32Array,
    count: number,
    out: Bytes,
    capacity: number,
    removeSpecial: boolean,
    unparseSpecial: boolean,
  ): number;
  contextDefaults(): ContextParameters;
  contextInit: Callable<[model: Pointer, parameters: ContextParameters], MaybePointer>;
  contextFree(context: Pointer): void;
  /** The pools must outlive the context. */
  attachThreadPool(context: Pointer, pool: Pointer, batchPool: Pointer): void;
  contextTokens(context: Pointer): number;
  contextSequenceTokens(context: Pointer): number;
  decode: Callable<[context: Pointer, batch: Batch], number>;
  logits(context: Pointer): MaybePointer;
  memory(context: Pointer): Pointer;
  memoryClear(memory: Pointer, data: boolean): void;
  memoryRemove(memory: Pointer, sequence: number, start: number, end: number): boolean;
  memoryCopy(memory: Pointer, from: number, to: number, start: number, end: number): void;
  memoryMin(memory: Pointer, sequence: number): number;
  memoryMax(memory: Pointer, sequence: number): number;
  stateSize(context: Pointer, sequence: number): Size;
  stateGet(context: Pointer, out: Bytes, capacityBytes: number, sequence: number): Size;
  stateSet(context: Pointer, bytes: Bytes, lengthBytes: number, sequence: number): Size;
  stateSave(context: Pointer, path: string, sequence: number, tokens: Int32Array, count: number): Size;
  stateLoad(
    context: Pointer,
    path: string,
    sequence: number,
    tokens: Int32Array,
    capacity: number,
    count: (number | bigint | null)[],
  ): Size;
  quantizeDefaults(): QuantizeParameters;
  quantize: Callable<[input: string, output: string, parameters: QuantizeParameters], number>;
  tensorName(tensor: Pointer): string;
  tensorOperation(tensor: Pointer): string;
  tensorBytes(tensor: Pointer): Size;
  tensorElements(tensor: Pointer): Size;
  tensorIsContiguous(tensor: Pointer): boolean;
  tensorGet(tensor: Pointer, out: Bytes, offsetBytes: number, lengthBytes: number): void;
}

const STRUCT_BYTES = { llama_model_params: 80, llama_context_params: 160, llama_batch: 56, llama_quantize_params: 64 };

let bound: LlamaLibrary | undefined;

/**
 * Binds and starts the library on first use. Throws KVTC_ENGINE_MISSING, and KVTC_ENGINE_VERSION when the library is not
 * the one its package says or its structs are not as known.
 */
export function llamaLibrary(): LlamaLibrary {
  bound ??= bind();
  return bound;
}

/** Runs a native function on the thread pool. One context must not be in two calls at once. */
export function callAsync<Arguments extends unknown[], Result>(
  call: Callable<Arguments, Result>,
  ...args: Arguments
): Promise<Result> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error, result) => {
      if (error === null || error === undefined) resolve(result);
      else reject(error instanceof Error ? error : new Error(String(error)));
    });
  });
}

/** Registers a JS function as ggml's evaluation callback; the returned pointer must be unregistered. */
export function registerEvaluationCallback(callback: (tensor: Pointer, ask: boolean) => boolean): Pointer {
  return koffi.register(callback, koffi.pointer(evaluationProto()));
}

let evaluationCallback: ReturnType<typeof koffi.proto> | undefined;
function evaluationProto(): ReturnType<typeof koffi.proto> {
  evaluationCallback ??= koffi.proto('bool kvtc_eval_callback(void *tensor, bool ask, void *data)');
  return evaluationCallback;
}

function bind(): LlamaLibrary {
  const { llama, ggmlBase, release } = loadNativeLibraries();
  defineStructs();
  // koffi types functions loosely; the interface above is the checked statement of each signature.
  const binder =
    (library: LibraryHandle) =>
    <F>(signature: string): F =>
      library.func(signature) as unknown as F;
  const f = binder(llama);
  const base = binder(ggmlBase);
  const version = f<() => string>('const char *llama_version()')();
  const library: LlamaLibrary = {
    release,
    modelDefaults: f('llama_model_params llama_model_default_params()'),
    modelLoad: f('void *llama_model_load_from_file(const char *path, llama_model_params p)'),
    modelFree: f('void llama_model_free(void *m)'),
    modelLayers: f('int32_t llama_model_n_layer(void *m)'),
    modelKvHeads: f('int32_t llama_model_n_head_kv(void *m)'),
    modelRopeType: f('int llama_model_rope_type(void *m)'),
    modelWindow: f('int32_t llama_model_n_swa(void *m)'),
    modelIsRecurrent: f('bool llama_model_is_recurrent(void *m)'),
    modelIsHybrid: f('bool llama_model_is_hybrid(void *m)'),
    modelTrainedContext: f('int32_t llama_model_n_ctx_train(void *m)'),
    modelVocab: f('void *llama_model_get_vocab(void *m)'),
    vocabTokens: f('int32_t llama_vocab_n_tokens(void *v)'),
    vocabType: f('int llama_vocab_type(void *v)'),
    vocabAddBos: f('bool llama_vocab_get_add_bos(void *v)'),
    vocabIsEog: f('bool llama_vocab_is_eog(void *v, int32_t token)'),
    tokenize: f(
      'int32_t llama_tokenize(void *v, void *text, int32_t n, void *out, int32_t max, bool special, bool parse)',
    ),
    detokenize: f(
      'int32_t llama_detokenize(void *v, void *tokens, int32_t n, void *out, int32_t max, bool remove, bool unparse)',
    ),
    contextDefaults: f('llama_context_params llama_context_default_params()'),
    contextInit: f('void *llama_init_from_model(void *m, llama_context_params p)'),
    contextFree: f('void llama_free(void *c)'),
    attachThreadPool: f('void llama_attach_threadpool(void *c, void *pool, void *batch)'),
    contextTokens: f('uint32_t llama_n_ctx(void *c)'),
    contextSequenceTokens: f('uint32_t llama_n_ctx_seq(void *c)'),
    decode: f('int llama_decode(void *c, llama_batch b)'),
    logits: f('void *llama_get_logits(void *c)'),
    memory: f('void *llama_get_memory(void *c)'),
    memoryClear: f('void llama_memory_clear(void *m, bool data)'),
    memoryRemove: f('bool llama_memory_seq_rm(void *m, int32_t s, int32_t p0, int32_t p1)'),
    memoryCopy: f('void llama_memory_seq_cp(void *m, int32_t from, int32_t to, int32_t p0, int32_t p1)'),
    memoryMin: f('int32_t llama_memory_seq_pos_min(void *m, int32_t s)'),
    memoryMax: f('int32_t llama_memory_seq_pos_max(void *m, int32_t s)'),
    stateSize: f('size_t llama_state_seq_get_size(void *c, int32_t s)'),
    stateGet: f('size_t llama_state_seq_get_data(void *c, void *out, size_t n, int32_t s)'),
    stateSet: f('size_t llama_state_seq_set_data(void *c, void *bytes, size_t n, int32_t s)'),
    stateSave: f('size_t llama_state_seq_save_file(void *c, const char *path, int32_t s, void *tokens, size_t n)'),
    stateLoad: f(
      'size_t llama_state_seq_load_file(void *c, const char *path, int32_t s, void *tokens, size_t max, _Out_ size_t *n)',
    ),
    quantizeDefaults: f('llama_quantize_params llama_model_quantize_default_params()'),
    quantize: f('uint32_t llama_model_quantize(const char *in, const char *out, llama_quantize_params *p)'),
    tensorName: base('const char *ggml_get_name(void *t)'),
    tensorOperation: base('const char *ggml_op_desc(void *t)'),
    tensorBytes: base('size_t ggml_nbytes(void *t)'),
    tensorElements: base('int64_t ggml_nelements(void *t)'),
    tensorIsContiguous: base('bool ggml_is_contiguous(void *t)'),
    tensorGet: base('void ggml_backend_tensor_get(void *t, void *out, size_t offset, size_t n)'),
  };
  checkLayouts(library, version);
  f<() => void>('void llama_backend_init()')();
  return Object.freeze(library);
}

function checkLayouts(library: LlamaLibrary, version: string): void {
  const problems: string[] = [];
  if (version.replace(/-dev$/, '') !== library.release.slice(1)) problems.push(`it calls itself ${version}`);
  for (const [name, bytes] of Object.entries(STRUCT_BYTES)) {
    if (koffi.sizeof(name) !== bytes) problems.push(`${name} has ${koffi.sizeof(name)} bytes, not ${bytes}`);
  }
  if (problems.length === 0) {
    const context = library.contextDefaults();
    if (context.n_ctx !== 512 || context.type_k !== 1 || context.type_v !== 1 || context.kv_unified) {
      problems.push('its default context parameters are not as known');
    }
    if (library.modelDefaults().n_gpu_layers !== -1) problems.push('its default model parameters are not as known');
  }
  if (problems.length > 0) {
    throw new KvtcError(
      'KVTC_ENGINE_VERSION',
      `the engine library is not llama.cpp ${library.release}: ${problems.join('; ')}`,
      {
        got: version,
        expected: library.release,
      },
    );
  }
}

function defineStructs(): void {
  const pointer = 'void *';
  koffi.struct('llama_model_params', {
    devices: pointer,
    tensor_buft_overrides: pointer,
    n_gpu_layers: 'int32_t',
    split_mode: 'int32_t',
    load_mode: 'int32_t',
    lazy_mode: 'int32_t',
    main_gpu: 'int32_t',
    tensor_split: pointer,
    progress_callback: pointer,
    progress_callback_user_data: pointer,
    kv_overrides: pointer,
    ...sameType('bool', ['vocab_only', 'check_tensors', 'use_extra_bufts', 'no_host', 'no_alloc', 'load_mtp']),
  });
  koffi.struct('llama_context_params', {
    ...sameType('uint32_t', ['n_ctx', 'n_batch', 'n_ubatch', 'n_seq_max', 'n_rs_seq', 'n_outputs_max']),
    n_outputs_max_per_seq: 'uint32_t',
    ...sameType('int32_t', ['n_threads', 'n_threads_batch', 'ctx_type', 'rope_scaling_type', 'pooling_type']),
    ...sameType('int32_t', ['attention_type', 'flash_attn_type']),
    ...sameType('float', ['rope_freq_base', 'rope_freq_scale', 'yarn_ext_factor', 'yarn_attn_factor']),
    ...sameType('float', ['yarn_beta_fast', 'yarn_beta_slow']),
    yarn_orig_ctx: 'uint32_t',
    defrag_thold: 'float',
    cb_eval: pointer,
    cb_eval_user_data: pointer,
    type_k: 'int32_t',
    type_v: 'int32_t',
    abort_callback: pointer,
    abort_callback_data: pointer,
    ...sameType('bool', ['embeddings', 'offload_kqv', 'no_perf', 'op_offload', 'swa_full', 'kv_unified']),
    samplers: pointer,
    n_samplers: 'size_t',
    ctx_other: pointer,
  });
  koffi.struct('llama_batch', {
    n_tokens: 'int32_t',
    ...sameType(pointer, ['token', 'embd', 'pos', 'n_seq_id', 'seq_id', 'logits']),
  });
  koffi.struct('llama_quantize_params', {
    ...sameType('int32_t', ['nthread', 'ftype', 'output_tensor_type', 'token_embedding_type']),
    ...sameType('bool', ['allow_requantize', 'quantize_output_tensor', 'only_copy', 'pure', 'keep_split', 'dry_run']),
    ...sameType(pointer, ['imatrix', 'kv_overrides', 'tt_overrides', 'prune_layers']),
    max_buf_size: 'size_t',
  });
}

function sameType(type: string, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(names.map((name) => [name, type]));
}
