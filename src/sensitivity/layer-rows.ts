// Single layers of a sequence state as f32. Does not know RoPE or what is done to the rows.

import { decodeF16 } from '../base/half.ts';
import type { StreamKind } from '../base/geometry.ts';
import { KvtcError } from '../base/errors.ts';
import type { StateView } from '../engines/llama/state.ts';
import { gatherRows, rowBytesOf } from '../engines/llama/state.ts';

/** f32[tokens, kvHeads · headDim] of a layer, as the engine holds it. Throws KVTC_STATE_UNSUPPORTED unless f16. */
export function layerRows(view: StateView, stream: StreamKind, layer: number): Float32Array {
  const element = stream === 'key' ? view.keyType : view.valueType;
  if (element !== 'f16') {
    const message = `the ${stream} cache is ${element}; sensitivities are measured on f16 caches`;
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', message, { stream, element });
  }
  const bytes = new Uint8Array(view.tokenCount * rowBytesOf(view, stream));
  const layers = { startLayer: layer, endLayer: layer + 1 };
  gatherRows(view, stream, layers, { startToken: 0, endToken: view.tokenCount }, bytes);
  const values = new Float32Array(bytes.length / 2);
  decodeF16(new Uint16Array(bytes.buffer), values);
  return values;
}

/** Columns of one head: f32[tokens, headDim]. */
export function headColumns(rows: Float32Array, width: number, head: number, headDim: number): Float32Array {
  const tokens = rows.length / width;
  const out = new Float32Array(tokens * headDim);
  for (let t = 0; t < tokens; t++) {
    const from = t * width + head * headDim;
    out.set(rows.subarray(from, from + headDim), t * headDim);
  }
  return out;
}
