// A kernel: the compiled hot loops with one family's tables in their memory, and room for a chunk behind them.
// Does not know chunks or plans.

import { invariant } from '../../../base/errors.ts';
import { fillEncoder } from '../../entropy/rans.ts';
import { CLASS_MIN } from '../classes.ts';
import type { TableFamily } from '../family.ts';
import { prepareDecisions, reconstruct } from '../symbolise.ts';
import {
  ENTRY_STRIDE,
  SINGLE_CLASS_MAX,
  SINGLE_ESCAPE,
  SINGLE_REACH,
  SINGLE_TABLES,
  TABLES,
  pairReach,
  symbolCount,
} from '../symbols.ts';
import { assembleModule } from './assemble.ts';
import { DECODE_TEXT } from './decode-text.ts';
import { ENCODE_TEXT } from './encode-text.ts';
import {
  CENTROIDS,
  CHUNK,
  DECISIONS,
  ENCODER,
  ENCODER_BYTES,
  ENTRY,
  ENTRY_BYTES,
  PAIR_ESCAPE_MARK,
  TABLE_BYTES,
  TABLE_ENTRIES,
  WEIGHTS,
} from './layout.ts';

const PAGE_BYTES = 65_536;

/** The functions of decode-text.ts and encode-text.ts. All parameters but `scale` are i32, addresses in bytes. */
export interface KernelFunctions {
  decode(pairs: number, laneEnd: number, pairClasses: number, runEnds: number, componentClasses: number): void;
  symbolise(
    from: number,
    pairs: number,
    scale: number,
    tokenShift: number,
    expected: number,
    pairClasses: number,
    runEnds: number,
    componentClasses: number,
    at: number,
  ): number;
  /** 1 when all f32 at [from, end), a multiple of 16 bytes, are finite. */
  finite(from: number, end: number): number;
  write(lane: number, first: number, end: number, encoder: number): void;
}

export interface Kernel {
  readonly run: KernelFunctions;
  /**
   * Gives the chunk room of `roomBytes` from CHUNK on, not cleared, and returns the memory as bytes. Earlier views of the
   * memory may be dead afterwards.
   */
  reserve(roomBytes: number): Uint8Array;
}

/** What is used of the platform's WebAssembly, which the library's types do not include. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Memory: new (limits: { readonly initial: number }) => {
    readonly buffer: ArrayBuffer;
    grow(pages: number): number;
  };
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
};

let compiled: object | undefined;
const kernels = new WeakMap<TableFamily, Kernel>();

/** The family's kernel; made once (about 2 ms, and 8 ms more for the first of all). One thread uses it at a time. */
export function kernelOf(family: TableFamily): Kernel {
  const known = kernels.get(family);
  if (known !== undefined) return known;
  compiled ??= new WebAssembly.Module(assembleModule(DECODE_TEXT + ENCODE_TEXT));
  const memory = new WebAssembly.Memory({ initial: Math.ceil(CHUNK / PAGE_BYTES) });
  const instance = new WebAssembly.Instance(compiled, { kvtc: { memory } });
  loadTables(memory.buffer, family);
  const kernel: Kernel = {
    run: instance.exports as KernelFunctions,
    reserve: (roomBytes) => {
      invariant(Number.isInteger(roomBytes) && roomBytes >= 0, `${roomBytes} bytes of kernel memory`);
      const missing = CHUNK + roomBytes - memory.buffer.byteLength;
      if (missing > 0) memory.grow(Math.ceil(missing / PAGE_BYTES));
      return new Uint8Array(memory.buffer);
    },
  };
  kernels.set(family, kernel);
  return kernel;
}

function loadTables(buffer: ArrayBuffer, family: TableFamily): void {
  const { frequencies, centroids, weights } = family;
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  for (let table = 0; table < TABLES; table++) {
    const first = table * ENTRY_STRIDE;
    const at = table * TABLE_BYTES;
    const own = frequencies.subarray(first, first + symbolCount(table));
    const entryAt = (symbol: number): number => at + TABLE_ENTRIES + ENTRY_BYTES * symbol;
    const bring = (symbol: number, values: readonly [number, number], magnitude: number): void => {
      view.setFloat32(entryAt(symbol) + ENTRY.values, values[0], true);
      view.setFloat32(entryAt(symbol) + ENTRY.values + 4, values[1], true);
      view.setInt32(entryAt(symbol) + ENTRY.magnitude, magnitude, true);
    };
    let start = 0;
    for (const [symbol, frequency] of own.entries()) {
      bytes.fill(symbol, at + start, at + start + frequency);
      view.setUint16(entryAt(symbol) + ENTRY.frequency, frequency, true);
      view.setUint16(entryAt(symbol) + ENTRY.start, start, true);
      start += frequency;
    }
    fillEncoder(own, view, ENCODER + ENCODER_BYTES * first);
    if (table < SINGLE_TABLES) {
      for (let q = -SINGLE_REACH; q <= SINGLE_REACH; q++) {
        bring(q + SINGLE_REACH, [reconstruct(q, centroids, table), 0], Math.abs(q));
      }
      bring(SINGLE_ESCAPE, [0, 0], SINGLE_REACH + 1);
      continue;
    }
    const row = table - SINGLE_TABLES;
    const reach = pairReach(row + CLASS_MIN);
    let pair = 0;
    for (let a = -reach; a <= reach; a++) {
      for (let b = -reach; b <= reach; b++, pair++) {
        bring(pair, [reconstruct(a, centroids, row), reconstruct(b, centroids, row)], Math.abs(a) + Math.abs(b));
      }
    }
    bring(pair, [0, 0], PAIR_ESCAPE_MARK);
  }
  new Int32Array(buffer, WEIGHTS, SINGLE_CLASS_MAX - CLASS_MIN + 1).set(weights);
  new Float32Array(buffer, CENTROIDS, centroids.length).set(centroids);
  const decisions = prepareDecisions(family);
  new Int32Array(buffer, DECISIONS, decisions.length).set(decisions);
}
