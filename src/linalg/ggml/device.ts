// Owns one ggml CPU backend: runs graphs one at a time off the JS thread, with one working buffer that all graphs share
// and that grows to the largest of them. Does not know what the graphs mean.

import { KvtcError, invariant } from '../../base/errors.ts';
import { GGML_TYPE, ggmlLibrary } from './library.ts';
import type { GgmlLibrary, GgmlType, Pointer } from './library.ts';

/** More nodes than any graph here has. */
const GRAPH_NODES = 64;

/** Moves data between JS and a graph's tensors while the graph is allocated. */
type Transfer = (library: GgmlLibrary) => void;

/** What a graph builder returns: results to compute, and how data gets in and out. */
export interface GraphJob {
  readonly inputs: readonly Pointer[];
  readonly outputs: readonly Pointer[];
  readonly upload: Transfer;
  readonly download: Transfer;
}

/** A tensor that stays allocated until closed: a matrix, a mean, frequency factors. */
export interface ConstantTensor {
  readonly tensor: Pointer;
  close(): void;
}

/** Builds graphs of tensors. `tensor` makes an unallocated leaf. */
export interface GraphBuilder {
  readonly library: GgmlLibrary;
  readonly context: Pointer;
  tensor(type: GgmlType, ne0: number, ne1?: number, ne2?: number): Pointer;
}

/** Closable. At most one graph runs at a time; later calls wait their turn. */
export class GgmlDevice {
  readonly threads: number;
  readonly library: GgmlLibrary;
  private readonly backend: Pointer;
  private readonly allocator: Pointer;
  private readonly pool: Pointer | null;
  private readonly constants = new Set<() => void>();
  private queue: Promise<unknown> = Promise.resolve();
  private pending = 0;
  private closing = false;

  constructor(threads: number) {
    this.threads = threads;
    this.library = ggmlLibrary();
    this.backend = allocated(this.library.deviceInit(this.library.cpuDevice(), null), 'a CPU backend');
    this.library.setThreads(this.backend, threads);
    // ggml would start threads anew for every graph, and a fresh thread can wait milliseconds for a core.
    this.pool = this.library.threadPoolNew(threads);
    if (this.pool !== null) this.library.setThreadPool(this.backend, this.pool);
    this.allocator = allocated(this.library.allocatorNew(this.library.bufferType(this.backend)), 'a graph allocator');
  }

  /** Builds, allocates, uploads, computes and downloads one graph. Throws KVTC_BACKEND_FAILED when ggml fails. */
  run(build: (graph: GraphBuilder) => GraphJob): Promise<void> {
    invariant(!this.closing, 'numeric backend used after close');
    this.pending++;
    const job = this.queue.then(() => this.runNow(build));
    this.queue = job.then(
      () => this.settled(),
      () => this.settled(),
    );
    return job;
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
    const context = this.newContext(1);
    const tensor = library.newTensor(context, GGML_TYPE[type], ne0, ne1, 1, 1);
    const buffer = library.allocateTensors(context, this.backend);
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
      this.library.allocatorFree(this.allocator);
      this.library.backendFree(this.backend);
      if (this.pool !== null) this.library.threadPoolFree(this.pool);
    });
  }

  private settled(): void {
    this.pending--;
  }

  private afterPending(action: () => void): void {
    if (this.pending === 0) action();
    else this.queue = this.queue.then(action);
  }

  private newContext(tensors: number): Pointer {
    const { library } = this;
    const bytes =
      Number(library.tensorOverhead()) * (tensors + 1) +
      (tensors > 1 ? Number(library.graphOverhead(GRAPH_NODES, false)) : 0) +
      1024;
    return allocated(library.init({ mem_size: bytes, mem_buffer: null, no_alloc: true }), 'a ggml context');
  }

  private async runNow(build: (graph: GraphBuilder) => GraphJob): Promise<void> {
    const { library } = this;
    const context = this.newContext(GRAPH_NODES);
    try {
      const job = build({
        library,
        context,
        tensor: (type, ne0, ne1 = 1, ne2 = 1) => library.newTensor(context, GGML_TYPE[type], ne0, ne1, ne2, 1),
      });
      for (const input of job.inputs) library.setInput(input);
      const graph = library.newGraph(context, GRAPH_NODES, false);
      for (const output of job.outputs) {
        library.setOutput(output);
        library.expandGraph(graph, output);
      }
      if (!library.allocatorAlloc(this.allocator, graph)) {
        throw new KvtcError('KVTC_BACKEND_FAILED', 'ggml could not allocate the working memory of a product');
      }
      job.upload(library);
      await this.compute(graph);
      job.download(library);
    } finally {
      library.free(context);
    }
  }

  private compute(graph: Pointer): Promise<void> {
    return new Promise((resolve, reject) => {
      this.library.compute.async(this.backend, graph, (error, status) => {
        if (error === null && status === 0) return resolve();
        reject(
          new KvtcError(
            'KVTC_BACKEND_FAILED',
            `ggml gave up a product with status ${status}`,
            { status },
            { cause: error },
          ),
        );
      });
    });
  }
}

function allocated(pointer: Pointer | null, what: string): Pointer {
  if (pointer === null) throw new KvtcError('KVTC_BACKEND_FAILED', `ggml could not make ${what}`);
  return pointer;
}
