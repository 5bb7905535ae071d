// Loads constant matrices into ggml tensors, block by block, so that a basis is never whole in memory as f32.
// The contraction side is padded with zeros to whole blocks of q8_0.
// Does not know what the matrix is for.

import type { MatrixSource, Precision } from '../backend.ts';
import { TERM_BLOCK, padded } from '../backend.ts';
import type { ConstantTensor, GgmlDevice } from './device.ts';
import { GGML_TYPE } from './library.ts';

/** Rows read at a time: 64 rows of p = 40 960 are 10 MB. */
const ROWS_PER_READ = 64;

/** [rows, columns] as it is: a tensor of `rows` rows of padded(columns). */
export function loadMatrix(device: GgmlDevice, source: MatrixSource, precision: Precision): Promise<ConstantTensor> {
  const { rows, columns } = source;
  const width = padded(columns);
  const type = GGML_TYPE[precision];
  return device.constant(precision, width, rows, async (tensor) => {
    const { library } = device;
    const bytesPerRow = Number(library.rowBytes(type, width));
    const block = new Float32Array(ROWS_PER_READ * columns);
    const wide = width === columns ? block : new Float32Array(ROWS_PER_READ * width);
    const packed = new Uint8Array(precision === 'f32' ? 0 : ROWS_PER_READ * bytesPerRow);
    for (let row = 0; row < rows; row += ROWS_PER_READ) {
      const count = Math.min(ROWS_PER_READ, rows - row);
      await source.read(row, row + count, block.subarray(0, count * columns));
      if (wide !== block) {
        for (let i = 0; i < count; i++) wide.set(block.subarray(i * columns, (i + 1) * columns), i * width);
      }
      if (precision !== 'f32') library.quantize(type, wide, packed, 0, count, width, null);
      library.tensorSet(tensor, precision === 'f32' ? wide : packed, row * bytesPerRow, count * bytesPerRow);
    }
  });
}

/**
 * The transpose of [rows, columns]: a tensor of `columns` rows of padded(rows). Reads 32 rows of the source at a time,
 * which is one q8_0 block of every row of the result.
 */
export function loadTransposed(
  device: GgmlDevice,
  source: MatrixSource,
  precision: Precision,
): Promise<ConstantTensor> {
  const { rows, columns } = source;
  const width = padded(rows);
  const type = GGML_TYPE[precision];
  return device.constant(precision, width, columns, async (tensor) => {
    const { library } = device;
    const bytesPerRow = Number(library.rowBytes(type, width));
    const bytesPerBlock = Number(library.rowBytes(type, TERM_BLOCK));
    const block = new Float32Array(TERM_BLOCK * columns);
    const turned = new Float32Array(columns * TERM_BLOCK);
    const packed = new Uint8Array(precision === 'f32' ? 0 : columns * bytesPerBlock);
    for (let row = 0; row < rows; row += TERM_BLOCK) {
      const count = Math.min(TERM_BLOCK, rows - row);
      await source.read(row, row + count, block.subarray(0, count * columns));
      if (count < TERM_BLOCK) turned.fill(0);
      for (let i = 0; i < count; i++) {
        for (let j = 0, from = i * columns; j < columns; j++) turned[j * TERM_BLOCK + i] = block[from + j]!;
      }
      if (precision !== 'f32') library.quantize(type, turned, packed, 0, columns, TERM_BLOCK, null);
      library.tensorSet2d(
        tensor,
        precision === 'f32' ? turned : packed,
        (row / TERM_BLOCK) * bytesPerBlock,
        bytesPerBlock,
        columns,
        bytesPerRow,
        bytesPerBlock,
      );
    }
  });
}

/** A vector of f32 values as a constant tensor. */
export function loadVector(device: GgmlDevice, values: Float32Array): Promise<ConstantTensor> {
  return device.constant('f32', values.length, 1, (tensor) =>
    device.library.tensorSet(tensor, values, 0, values.byteLength),
  );
}
