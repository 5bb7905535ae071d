// One ggml CPU backend with its threads and working buffer: runs graphs one at a time off the JS thread. The buffer grows
// to the largest graph. Does not know what the graphs mean, or that there are other lanes.

import { KvtcError } from '../../base/errors.ts';
import { newThreadPool } from '../../native/thread-pool.ts';
import type { ThreadPool } from '../../native/thread-pool.ts';
import { GGML_TYPE } from './library.ts';
import type { GgmlLibrary, GgmlType, Pointer } from './library.ts';

/** Threads sleep between graphs: JS and inflating need the cores then. */
const POOL_POLL = 0;

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

/** Builds graphs of tensors. `tensor` makes an unallocated leaf. */
export interface GraphBuilder {
  readonly library: GgmlLibrary;
  readonly context: Pointer;
  tensor(type: GgmlType, ne0: number, ne1?: number, ne2?: number): Pointer;
}

/** Makes a graph's tensors and says what goes in and comes out. */
export type GraphBuild = (graph: GraphBuilder) => GraphJob;

/** Closable once idle. */
export class Lane {
  readonly library: GgmlLibrary;
  readonly backend: Pointer;
  private readonly pool: ThreadPool | null;
  private allocator: Pointer | null = null;
  private queue: Promise<unknown> = Promise.resolve();
  /** Graphs that wait or run. */
  pending = 0;

  constructor(library: GgmlLibrary, threads: number) {
    this.library = library;
    this.backend = allocated(library.deviceInit(library.cpuDevice(), null), 'a CPU backend');
    library.setThreads(this.backend, threads);
    this.pool = threads > 1 ? newThreadPool(threads, POOL_POLL) : null;
    if (this.pool !== null) library.setThreadPool(this.backend, this.pool.pointer);
  }

  /** Builds, allocates, uploads, computes and downloads one graph. Throws KVTC_BACKEND_FAILED when ggml fails. */
  run(build: GraphBuild): Promise<void> {
    this.pending++;
    const settled = (): void => {
      this.pending--;
    };
    const job = this.queue.then(() => this.runNow(build));
    this.queue = job.then(settled, settled);
    return job;
  }

  /** Ends when all that was asked for by now has. */
  async idle(): Promise<void> {
    await this.queue;
  }

  close(): void {
    if (this.allocator !== null) this.library.allocatorFree(this.allocator);
    this.library.backendFree(this.backend);
    this.pool?.close();
  }

  private async runNow(build: (graph: GraphBuilder) => GraphJob): Promise<void> {
    const { library } = this;
    const context = newContext(library, GRAPH_NODES);
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
      this.allocator ??= allocated(library.allocatorNew(library.bufferType(this.backend)), 'a graph allocator');
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

/** A ggml context for so many tensors, and for a graph where there is more than one. */
export function newContext(library: GgmlLibrary, tensors: number): Pointer {
  const bytes =
    Number(library.tensorOverhead()) * (tensors + 1) +
    (tensors > 1 ? Number(library.graphOverhead(GRAPH_NODES, false)) : 0) +
    1024;
  return allocated(library.init({ mem_size: bytes, mem_buffer: null, no_alloc: true }), 'a ggml context');
}

function allocated(pointer: Pointer | null, what: string): Pointer {
  if (pointer === null) throw new KvtcError('KVTC_BACKEND_FAILED', `ggml could not make ${what}`);
  return pointer;
}
