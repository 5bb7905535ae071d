// Watching tensors of the engine's graph while it computes (ggml's evaluation callback).
// Every watched tensor stops the graph and crosses to this thread: for tests and measurements, not for serving.
// Does not know which tensors matter.

import koffi from 'koffi';
import { invariant } from '../../base/errors.ts';
import type { Pointer } from './bindings.ts';
import { llamaLibrary, registerEvaluationCallback } from './bindings.ts';

/** A computed tensor: f32 values, fastest dimension first. Names repeat: a name and an operation are one node. */
export interface TappedTensor {
  readonly name: string;
  /** ggml's name of the operation, such as `ROPE` or `MUL_MAT`. */
  readonly operation: string;
  readonly dims: readonly number[];
  readonly values: Float32Array;
}

export interface TensorTap {
  /** Called for every node of every graph; true to receive it. */
  wants(name: string, operation: string): boolean;
  take(tensor: TappedTensor): void;
}

export interface AttachedTap {
  readonly callback: Pointer;
  /** Throws what the tap threw during the last decode, if it did. */
  rethrow(): void;
  close(): void;
}

/** ggml_tensor begins: i32 type, pointer buffer, i64 ne[4]. */
const DIMS_OFFSET_BYTES = 16;
const DIMS = 4;

export function attachTap(tap: TensorTap): AttachedTap {
  let failure: { readonly error: unknown } | null = null;
  // An exception must not cross into the engine: keep it and stop the graph.
  const callback = registerEvaluationCallback((tensor, ask) => {
    try {
      const library = llamaLibrary();
      const name = library.tensorName(tensor);
      const operation = library.tensorOperation(tensor);
      if (ask) return tap.wants(name, operation);
      tap.take({ name, operation, ...readTensorValues(tensor) });
      return true;
    } catch (error) {
      failure ??= { error };
      return false;
    }
  });
  return {
    callback,
    rethrow: () => {
      const failed = failure;
      failure = null;
      if (failed !== null) throw failed.error;
    },
    close: () => koffi.unregister(callback),
  };
}

function readTensorValues(tensor: Pointer): { dims: number[]; values: Float32Array } {
  const library = llamaLibrary();
  const head = new DataView(koffi.view(tensor, DIMS_OFFSET_BYTES + DIMS * 8));
  const dims = Array.from({ length: DIMS }, (_, i) => Number(head.getBigInt64(DIMS_OFFSET_BYTES + i * 8, true)));
  const count = Number(library.tensorElements(tensor));
  const bytes = Number(library.tensorBytes(tensor));
  invariant(dims.reduce((a, b) => a * b, 1) === count, 'tensor struct lies as known');
  invariant(head.getInt32(0, true) === 0 && bytes === count * 4, 'tapped tensors are dense f32');
  const values = new Float32Array(count);
  library.tensorGet(tensor, values, 0, bytes);
  return { dims, values };
}
