// Weights of any ggml type as f32, by ggml's own kernels. Does not know files or what the weights are for.

import { invariant } from '../../base/errors.ts';
import { GgmlDevice } from './device.ts';

/**
 * f32[rows, columns] of weights stored as ggml type number `type`. `columns` must be a multiple of the type's block, and
 * the type one of floats or of quantised floats. Throws KVTC_BACKEND_FAILED, KVTC_ENGINE_MISSING, KVTC_ENGINE_VERSION.
 */
export async function dequantise(
  type: number,
  bytes: Uint8Array,
  rows: number,
  columns: number,
): Promise<Float32Array> {
  const device = new GgmlDevice(1);
  try {
    const expected = rows * Number(device.library.rowBytes(type, columns));
    invariant(bytes.length === expected, `${bytes.length} bytes of weights, expected ${expected}`);
    const values = new Float32Array(rows * columns);
    await device.run(({ library, context }) => {
      const leaf = library.newTensor(context, type, columns, rows, 1, 1);
      const cast = library.cast(context, leaf, 0);
      return {
        inputs: [leaf],
        outputs: [cast],
        upload: () => library.tensorSet(leaf, bytes, 0, bytes.length),
        download: () => library.tensorGet(cast, values, 0, values.byteLength),
      };
    });
    return values;
  } finally {
    device.close();
  }
}
