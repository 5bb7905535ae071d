// What a query head's output weighs in the residual stream: Gram matrices of its columns of the output projection, read
// from the GGUF. Does not know: caches, attention.

import { KvtcError } from '../base/errors.ts';
import type { Gguf } from '../engines/llama/gguf.ts';
import { readTensor } from '../engines/llama/gguf.ts';
import { weightMatrix } from '../engines/llama/weights.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix, transpose } from '../linalg/dense.ts';
import { dequantise } from '../linalg/ggml/dequantise.ts';

/** Largest projection read: 16 384 × 16 384 in f32. */
const LIMIT_BYTES = 2 ** 30;

/**
 * W_hᵀ·W_h of every query head h of a layer: f32[queryHeads, headDim, headDim], W_h the columns of `attn_output` that
 * take the head's output. Throws KVTC_MODEL_UNSUPPORTED for a missing projection or one that is no matrix of (quantised)
 * floats, KVTC_GGUF_MALFORMED, KVTC_BACKEND_FAILED.
 */
export async function outputGram(gguf: Gguf, layer: number, headDim: number, backend: Backend): Promise<Float32Array> {
  const name = `blk.${layer}.attn_output.weight`;
  const tensor = weightMatrix(gguf, name);
  const [inputs = 0, outputs = 1] = tensor.dims;
  if (inputs === 0 || inputs % headDim !== 0) {
    const message = `${name} takes ${inputs} values, no multiple of the head size ${headDim}`;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { tensor: name, inputs });
  }
  const bytes = await readTensor(gguf, tensor, LIMIT_BYTES);
  const weights = await dequantise(tensor.typeCode, bytes, outputs, inputs); // [outputs, inputs]
  const columns = transpose(weights, outputs, inputs); // [inputs, outputs]
  const heads = inputs / headDim;
  const gram = new Float32Array(heads * headDim * headDim);
  for (let h = 0; h < heads; h++) {
    const own = columns.subarray(h * headDim * outputs, (h + 1) * headDim * outputs);
    const matrix = await backend.prepareMatrix(denseMatrix(own, headDim, outputs), 'f32');
    try {
      await matrix.multiply(own, headDim, gram.subarray(h * headDim * headDim, (h + 1) * headDim * headDim));
    } finally {
      matrix.close();
    }
  }
  return gram;
}
