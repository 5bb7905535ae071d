// The arrays behind a llama_batch: tokens of one sequence, their positions, where logits are wanted.
// Does not check anything; context.ts has.

import koffi from 'koffi';
import type { Batch } from './bindings.ts';

/** Arrays are at least this long: shorter typed arrays may live on V8's heap, where they can move during a call. */
const LEAST_BATCH_ARRAY = 64;

export interface BatchArrays {
  readonly token: Int32Array;
  readonly pos: Int32Array;
  readonly n_seq_id: Int32Array;
  readonly seq_id: BigUint64Array;
  readonly logits: Int8Array;
  /** The one sequence id that all entries of seq_id point to. */
  readonly sequence: Int32Array;
}

/** Arrays for batches of up to `batchTokens` tokens, kept and reused so that nothing moves or goes while a call runs. */
export function batchArrays(batchTokens: number): BatchArrays {
  const capacity = Math.max(batchTokens, LEAST_BATCH_ARRAY);
  const sequence = new Int32Array(LEAST_BATCH_ARRAY);
  return {
    token: new Int32Array(capacity),
    pos: new Int32Array(capacity),
    n_seq_id: new Int32Array(capacity).fill(1),
    seq_id: new BigUint64Array(capacity).fill(koffi.address(sequence)),
    logits: new Int8Array(Math.max(capacity, LEAST_BATCH_ARRAY * 2)),
    sequence,
  };
}

/** Writes tokens of one sequence at ascending positions into the arrays. */
export function fillBatch(
  arrays: BatchArrays,
  tokens: Int32Array,
  position: number,
  sequence: number,
  outputs: 'none' | 'last' | 'all',
): Batch {
  const count = tokens.length;
  arrays.token.set(tokens);
  for (let i = 0; i < count; i++) arrays.pos[i] = position + i;
  arrays.sequence[0] = sequence;
  arrays.logits.fill(outputs === 'all' ? 1 : 0, 0, count);
  if (outputs === 'last') arrays.logits[count - 1] = 1;
  const { token, pos, n_seq_id, seq_id, logits } = arrays;
  return { n_tokens: count, token, embd: null, pos, n_seq_id, seq_id, logits };
}
