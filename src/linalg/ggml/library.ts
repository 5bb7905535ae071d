// The ggml functions the numeric backend calls, bound once per process through koffi (C API of ggml, header ggml.h,
// ggml-backend.h, ggml-alloc.h; signatures unchanged over the pinned releases).
// Does not know: where the libraries lie (native/), what the graphs compute.

import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';
import { KvtcError } from '../../base/errors.ts';
import { loadNativeLibraries } from '../../native/library.ts';
import { cpuFunction } from '../../native/thread-pool.ts';

/** An opaque native pointer. koffi gives NULL as null. */
export type Pointer = bigint;
type Bytes = ArrayBufferView;
/** Handle of a ggml_tensor, a ggml_context, a ggml_cgraph: all plain pointers to JS, told apart by parameter names. */
type MaybePointer = Pointer | null;

/** ggml_type values used here. */
export const GGML_TYPE = { f32: 0, f16: 1, q8_0: 8, i32: 26, bf16: 30 } as const;
export type GgmlType = keyof typeof GGML_TYPE;

const DEVICE_TYPE_CPU = 0;
interface AsyncStatus {
  (backend: Pointer, graph: Pointer): number;
  async(backend: Pointer, graph: Pointer, done: (error: unknown, status: number) => void): void;
}

export interface GgmlLibrary {
  init(parameters: { mem_size: number; mem_buffer: null; no_alloc: boolean }): MaybePointer;
  free(context: Pointer): void;
  tensorOverhead(): number | bigint;
  graphOverhead(nodes: number, grads: boolean): number | bigint;
  newTensor(context: Pointer, type: number, ne0: number, ne1: number, ne2: number, ne3: number): Pointer;
  newGraph(context: Pointer, nodes: number, grads: boolean): Pointer;
  expandGraph(graph: Pointer, tensor: Pointer): void;
  setInput(tensor: Pointer): void;
  setOutput(tensor: Pointer): void;
  tensorData(tensor: Pointer): MaybePointer;
  rowBytes(type: number, values: number): number | bigint;
  quantize(
    type: number,
    source: Float32Array,
    target: Pointer | Bytes,
    start: number,
    rows: number,
    valuesPerRow: number,
    importance: null,
  ): number | bigint;
  multiply(context: Pointer, matrix: Pointer, x: Pointer): Pointer;
  add(context: Pointer, a: Pointer, b: Pointer): Pointer;
  subtract(context: Pointer, a: Pointer, b: Pointer): Pointer;
  sumRows(context: Pointer, a: Pointer): Pointer;
  cast(context: Pointer, a: Pointer, type: number): Pointer;
  contiguous(context: Pointer, a: Pointer): Pointer;
  permute(context: Pointer, a: Pointer, axis0: number, axis1: number, axis2: number, axis3: number): Pointer;
  reshape(context: Pointer, a: Pointer, ne0: number, ne1: number, ne2: number): Pointer;
  view(context: Pointer, a: Pointer, ne0: number, ne1: number, strideBytes: number, offsetBytes: number): Pointer;
  pad(context: Pointer, a: Pointer, p0: number, p1: number, p2: number, p3: number): Pointer;
  rope: RopeFunction;
  ropeBack: RopeFunction;
  allocatorNew(bufferType: Pointer): MaybePointer;
  allocatorFree(allocator: Pointer): void;
  allocatorAlloc(allocator: Pointer, graph: Pointer): boolean;
  bufferType(backend: Pointer): Pointer;
  allocateTensors(context: Pointer, backend: Pointer): MaybePointer;
  bufferFree(buffer: Pointer): void;
  deviceInit(device: Pointer, parameters: null): MaybePointer;
  backendFree(backend: Pointer): void;
  tensorSet(tensor: Pointer, data: Bytes, offsetBytes: number, bytes: number): void;
  tensorGet(tensor: Pointer, data: Bytes, offsetBytes: number, bytes: number): void;
  /** `copies` pieces of `bytes`, `tensorStride` apart in the tensor and `dataStride` apart in `data`. */
  tensorSet2d(
    tensor: Pointer,
    data: Bytes,
    offsetBytes: number,
    bytes: number,
    copies: number,
    tensorStrideBytes: number,
    dataStrideBytes: number,
  ): void;
  tensorGet2d(
    tensor: Pointer,
    data: Bytes,
    offsetBytes: number,
    bytes: number,
    copies: number,
    tensorStrideBytes: number,
    dataStrideBytes: number,
  ): void;
  compute: AsyncStatus;
  cpuDevice(): Pointer;
  setThreads(backend: Pointer, threads: number): void;
  /** Without effect where this ggml has no pools. */
  setThreadPool(backend: Pointer, pool: Pointer): void;
}

type RopeFunction = (
  context: Pointer,
  a: Pointer,
  positions: Pointer,
  frequencyFactors: MaybePointer,
  dims: number,
  mode: number,
  originalContext: number,
  frequencyBase: number,
  frequencyScale: number,
  extFactor: number,
  attnFactor: number,
  betaFast: number,
  betaSlow: number,
) => Pointer;

const ROPE_ARGUMENTS =
  'void *c, void *a, void *positions, void *factors, int dims, int mode, int n_ctx_orig, float base, float scale, float ext, float attn, float fast, float slow';
const COPY_2D_ARGUMENTS =
  'void *t, void *data, size_t offset, size_t size, size_t copies, size_t stride_t, size_t stride_d';

let bound: GgmlLibrary | undefined;

/**
 * Binds the functions on first use. Throws KVTC_ENGINE_MISSING or KVTC_ENGINE_VERSION when the libraries cannot be
 * used (see native/library.ts), KVTC_BACKEND_FAILED when ggml has no CPU device.
 */
export function ggmlLibrary(): GgmlLibrary {
  bound ??= bind(loadNativeLibraries());
  return bound;
}

function bind(libraries: { readonly ggmlBase: LibraryHandle; readonly ggml: LibraryHandle }): GgmlLibrary {
  koffi.struct('ggml_init_params', { mem_size: 'size_t', mem_buffer: 'void *', no_alloc: 'bool' });
  // koffi types functions loosely; the interface above is the checked statement of each signature.
  const base = <F>(signature: string): F => libraries.ggmlBase.func(signature) as unknown as F;
  const device = libraries.ggml.func('void *ggml_backend_dev_by_type(int type)')(DEVICE_TYPE_CPU) as MaybePointer;
  if (device === null) throw new KvtcError('KVTC_BACKEND_FAILED', 'ggml offers no CPU device on this machine');
  const setThreads = cpuFunction('ggml_backend_set_n_threads', 'void kvtc_set_n_threads(void *backend, int threads)');
  const setPool = cpuFunction('ggml_backend_cpu_set_threadpool', 'void kvtc_set_threadpool(void *backend, void *pool)');
  return {
    init: base('void *ggml_init(ggml_init_params p)'),
    free: base('void ggml_free(void *c)'),
    tensorOverhead: base('size_t ggml_tensor_overhead()'),
    graphOverhead: base('size_t ggml_graph_overhead_custom(size_t nodes, bool grads)'),
    newTensor: base('void *ggml_new_tensor_4d(void *c, int type, int64_t a, int64_t b, int64_t d, int64_t e)'),
    newGraph: base('void *ggml_new_graph_custom(void *c, size_t nodes, bool grads)'),
    expandGraph: base('void ggml_build_forward_expand(void *g, void *t)'),
    setInput: base('void ggml_set_input(void *t)'),
    setOutput: base('void ggml_set_output(void *t)'),
    tensorData: base('void *ggml_get_data(void *t)'),
    rowBytes: base('size_t ggml_row_size(int type, int64_t n)'),
    quantize: base(
      'size_t ggml_quantize_chunk(int type, const void *src, void *dst, int64_t start, int64_t rows, int64_t n, void *imatrix)',
    ),
    multiply: base('void *ggml_mul_mat(void *c, void *a, void *b)'),
    add: base('void *ggml_add(void *c, void *a, void *b)'),
    subtract: base('void *ggml_sub(void *c, void *a, void *b)'),
    sumRows: base('void *ggml_sum_rows(void *c, void *a)'),
    cast: base('void *ggml_cast(void *c, void *a, int type)'),
    contiguous: base('void *ggml_cont(void *c, void *a)'),
    permute: base('void *ggml_permute(void *c, void *a, int x, int y, int z, int w)'),
    reshape: base('void *ggml_reshape_3d(void *c, void *a, int64_t x, int64_t y, int64_t z)'),
    view: base('void *ggml_view_2d(void *c, void *a, int64_t x, int64_t y, size_t stride, size_t offset)'),
    pad: base('void *ggml_pad(void *c, void *a, int x, int y, int z, int w)'),
    rope: base(`void *ggml_rope_ext(${ROPE_ARGUMENTS})`),
    ropeBack: base(`void *ggml_rope_ext_back(${ROPE_ARGUMENTS})`),
    allocatorNew: base('void *ggml_gallocr_new(void *buft)'),
    allocatorFree: base('void ggml_gallocr_free(void *galloc)'),
    allocatorAlloc: base('bool ggml_gallocr_alloc_graph(void *galloc, void *graph)'),
    bufferType: base('void *ggml_backend_get_default_buffer_type(void *backend)'),
    allocateTensors: base('void *ggml_backend_alloc_ctx_tensors(void *c, void *backend)'),
    bufferFree: base('void ggml_backend_buffer_free(void *buffer)'),
    deviceInit: base('void *ggml_backend_dev_init(void *device, const char *parameters)'),
    backendFree: base('void ggml_backend_free(void *backend)'),
    tensorSet: base('void ggml_backend_tensor_set(void *t, const void *data, size_t offset, size_t size)'),
    tensorGet: base('void ggml_backend_tensor_get(void *t, void *data, size_t offset, size_t size)'),
    tensorSet2d: base(`void ggml_backend_tensor_set_2d(${COPY_2D_ARGUMENTS})`),
    tensorGet2d: base(`void ggml_backend_tensor_get_2d(${COPY_2D_ARGUMENTS})`),
    compute: base('int ggml_backend_graph_compute(void *backend, void *graph)'),
    cpuDevice: () => device,
    setThreads: (backend, threads) => void setThreads?.(backend, threads),
    setThreadPool: (backend, pool) => void setPool?.(backend, pool),
  };
}
