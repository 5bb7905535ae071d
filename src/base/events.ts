// Progress events and cancellation, shared by every long operation. Does not print anything.

import { KvtcError } from './errors.ts';

/** One step of a long operation. `done` and `total` count `unit`s; `total` may grow, `done` never falls. */
export interface ProgressEvent {
  readonly type: 'progress';
  /** Short stable name of the phase, such as `prefill`, `moments`, `basis`, `compress`. */
  readonly phase: string;
  readonly done: number;
  readonly total: number;
  readonly unit: string;
}

/** Something worth telling that did not stop the work. */
export interface WarningEvent {
  readonly type: 'warning';
  readonly message: string;
}

export type KvtcEvent = ProgressEvent | WarningEvent;

/** Options every long operation takes. */
export interface RunOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: KvtcEvent) => void) | undefined;
}

/** Throws KVTC_ABORTED, with the signal's reason as cause, once the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new KvtcError('KVTC_ABORTED', 'the operation was cancelled', {}, { cause: signal.reason });
}
