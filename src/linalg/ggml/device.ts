// Owns ggml's CPU: runs graphs off the JS thread, one at a time on all cores or several side by side on a share of them
// each. Holds the constant tensors that graphs read. Does not know what the graphs mean.

import { KvtcError, invariant } from '../../base/errors.ts';
import { Lane, newContext } from './lane.ts';
import { GGML_TYPE, ggmlLibrary } from './library.ts';
import type { GgmlLibrary, GgmlType, Pointer } from './library.ts';
import type { GraphBuild } from './lane.ts';

/** A tensor that stays allocated until closed: a matrix, a mean, frequency factors. */
export interface ConstantTensor {
  readonly tensor: Pointer;
  close(): void;
}

/**
 * Graphs side by side keep every core busy: while one waits for JS to bring its data or take its results, another
 * multiplies. Graphs of one thread wait for no other, so one more than there are cores fills the gaps; graphs of several
 * threads would stand in each other's way.
 */
function lanesFor(threads: number): { readonly lanes: number; readonly threadsEach: number } {
  return threads <= 2 ? { lanes: threads + 1, threadsEach: 1 } : { lanes: 2, threadsEach: Math.floor(threads / 2) };
}

/** Closable. Graphs wait their turn. */
export class GgmlDevice {
  readonly threads: number;
  readonly library: GgmlLibrary;
  private readonly lanes: readonly [Lane, ...Lane[]];
  /** On all threads, while the lanes share them; made when it is first needed. */
  private wide: Lane | null = null;
  private readonly constants = new Set<() => void>();
  private closing = false;

  constructor(threads: number) {
    this.threads = threads;
    this.library = ggmlLibrary();
    const { lanes, threadsEach } = lanesFor(threads);
    const lane = (): Lane => new Lane(this.library, threadsEach);
    this.lanes = [lane(), ...Array.from({ length: lanes - 1 }, lane)];
  }

  /**
   * Builds, allocates, uploads, computes and downloads one graph, beside others where there are cores for it. For callers
   * that have several under way. Throws KVTC_BACKEND_FAILED when ggml fails.
   */
  run(build: GraphBuild): Promise<void> {
    invariant(!this.closing, 'numeric backend used after close');
    return this.lanes.reduce((a, b) => (b.pending < a.pending ? b : a)).run(build);
  }

  /** As run, on all threads: for callers that wait for one graph at a time. */
  runAlone(build: GraphBuild): Promise<void> {
    invariant(!this.closing, 'numeric backend used after close');
    this.wide ??= this.threads === 1 ? this.lanes[0] : new Lane(this.library, this.threads);
    return this.wide.run(build);
  }

  /** Allocates a tensor outside any graph and lets `fill` write it (a failure frees it). */
  async constant(
    type: GgmlType,
    ne0: number,
    ne1: number,
    fill: (tensor: Pointer) => Promise<void> | void,
  ): Promise<ConstantTensor> {
    invariant(!this.closing, 'numeric backend used after close');
    const { library } = this;
    const context = newContext(library, 1);
    const tensor = library.newTensor(context, GGML_TYPE[type], ne0, ne1, 1, 1);
    const buffer = library.allocateTensors(context, this.lanes[0].backend);
    if (buffer === null) {
      library.free(context);
      throw new KvtcError('KVTC_BACKEND_FAILED', `no memory for a ${type} matrix of ${ne1} × ${ne0}`, {
        rows: ne1,
        columns: ne0,
      });
    }
    const release = (): void => {
      if (!this.constants.delete(release)) return;
      library.bufferFree(buffer);
      library.free(context);
    };
    this.constants.add(release);
    try {
      await fill(tensor);
    } catch (error) {
      release();
      throw error;
    }
    // A graph that is queued or running may still read the tensor: free it after those.
    return { tensor, close: () => this.afterPending(release) };
  }

  /** Frees everything once running work has ended. Idempotent. */
  close(): void {
    if (this.closing) return;
    this.closing = true;
    this.afterPending(() => {
      for (const release of this.constants) release();
      for (const lane of this.allLanes()) lane.close();
    });
  }

  private allLanes(): Lane[] {
    return [...new Set(this.wide === null ? this.lanes : [...this.lanes, this.wide])];
  }

  private afterPending(action: () => void): void {
    const busy = this.allLanes().filter((lane) => lane.pending > 0);
    if (busy.length === 0) action();
    else void Promise.all(busy.map((lane) => lane.idle())).then(action);
  }
}
