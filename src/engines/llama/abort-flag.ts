// A stop sign the engine's threads can see without calling into JavaScript.
// ggml asks its abort callback after every graph node, from its own thread; a JS callback there would cost a hop to this
// thread each time. The C library's strlen is a callback that needs none: on a native buffer that holds either an empty
// string or one of length 1 it returns 0 or 1. Does not know who raises it.

import koffi from 'koffi';
import type { Pointer } from './bindings.ts';

export interface AbortFlag {
  /** bool (*)(void *) */
  readonly callback: Pointer;
  readonly data: Pointer;
  raise(): void;
  lower(): void;
  close(): void;
}

let strlen: Pointer | undefined;

export function createAbortFlag(): AbortFlag {
  strlen ??= koffi.load(process.platform === 'win32' ? 'ucrtbase.dll' : null).symbol('strlen') as Pointer;
  const data = koffi.alloc('uint8_t', 8) as Pointer;
  let flag: Uint8Array | null = new Uint8Array(koffi.view(data, 8)).fill(0);
  return {
    callback: strlen,
    data,
    raise: () => flag?.fill(1, 0, 1),
    lower: () => flag?.fill(0, 0, 1),
    close: () => {
      if (flag !== null) koffi.free(data);
      flag = null;
    },
  };
}
