// ggml's thread pools: threads that sleep between graphs instead of being started anew for each, which costs milliseconds
// where cores are busy. Does not know what the graphs compute, or who runs them.

import koffi from 'koffi';
import { loadNativeLibraries } from './library.ts';

/** Closable, once whoever computes with it is freed. */
export interface ThreadPool {
  readonly pointer: bigint;
  close(): void;
}

const DEVICE_TYPE_CPU = 0;
/** ggml_threadpool_params takes 528 bytes (a mask of 512 cores, five fields); room is left for growth. */
const PARAMETERS_BYTES = 1024;
/** Where these fields lie in it, and what the second holds unless told otherwise. */
const THREADS_OFFSET_BYTES = 512;
const POLL_OFFSET_BYTES = 520;
const POLL_DEFAULT = 50;

type Make = (threads: number, poll: number) => ThreadPool | null;

let make: Make | undefined;

/**
 * A pool of `threads` threads, the caller's included; null where this engine has none. `poll` is how long its threads spin
 * for the next graph before they sleep: 0 not at all, 1 about a millisecond; ggml's own 50 keeps a core from others for
 * tens of milliseconds after every graph. Throws as loadNativeLibraries.
 */
export function newThreadPool(threads: number, poll: number): ThreadPool | null {
  make ??= bind();
  return make(threads, poll);
}

/** A function of the CPU library that ggml chose for this machine, called with its address; null when it has none. */
export function cpuFunction(name: string, signature: string): ((...values: unknown[]) => unknown) | null {
  const { ggml, ggmlBase } = loadNativeLibraries();
  const device = ggml.func('void *ggml_backend_dev_by_type(int type)')(DEVICE_TYPE_CPU) as bigint | null;
  if (device === null) return null;
  const registry = ggmlBase.func('void *ggml_backend_dev_backend_reg(void *d)')(device) as bigint;
  const addressOf = ggmlBase.func('void *ggml_backend_reg_get_proc_address(void *reg, const char *name)');
  const address = addressOf(registry, name) as bigint | null;
  if (address === null) return null;
  const type = koffi.proto(signature);
  return (...values) => koffi.call(address, type, ...values) as unknown;
}

function bind(): Make {
  const create = cpuFunction('ggml_threadpool_new', 'void *kvtc_threadpool_new(void *parameters)');
  const free = cpuFunction('ggml_threadpool_free', 'void kvtc_threadpool_free(void *pool)');
  if (create === null || free === null) return () => null;
  const initialise = loadNativeLibraries().ggmlBase.func(
    'void ggml_threadpool_params_init(void *parameters, int threads)',
  );
  return (threads, poll) => {
    const parameters = new Uint8Array(PARAMETERS_BYTES);
    initialise(parameters, threads);
    const fields = new DataView(parameters.buffer);
    if (
      fields.getInt32(THREADS_OFFSET_BYTES, true) === threads &&
      fields.getUint32(POLL_OFFSET_BYTES, true) === POLL_DEFAULT
    ) {
      fields.setUint32(POLL_OFFSET_BYTES, poll, true);
    }
    const pointer = create(parameters) as bigint | null;
    return pointer === null ? null : { pointer, close: () => void free(pointer) };
  };
}
