// The analysis of a profile that stores synthesis S and metric M: A = S·M, made dual to the rounded S by one pass of
// Gram-Schmidt against the leading components. Does not know: files, engine rows. Source: docs/format/profile.md, version 2.

import type { Backend, MatrixSource, PreparedMatrix } from '../linalg/backend.ts';
import { denseMatrix, transpose, triangleSize } from '../linalg/dense.ts';
import type { HeadMetric } from '../profile/profile.ts';

/**
 * Rounding S to 8 bits lets large coefficients leak into small ones: uncorrected, SmolLM2 at 16x has a KL of 2.0 instead of
 * 0.0014. So many leading components hold nearly all energy; four times as many, or repeating it, changes nothing.
 */
const LEADING = 256;

/** Rows computed at a time: a product for every head each time is dear for few rows. 7 MB where p is 7 168, three times over. */
const BLOCK_ROWS = 256;

/**
 * Hands `use` the analysis of `synthesis` [rank, p] as a source that computes rows when read, valid until `use` ends. Read
 * it from front to back, one read at a time.
 * Throws KVTC_BACKEND_FAILED and what `use` throws.
 */
export async function withDerivedAnalysis<T>(
  synthesis: MatrixSource,
  metric: HeadMetric,
  backend: Backend,
  use: (analysis: MatrixSource) => Promise<T>,
): Promise<T> {
  const { rows: rank, columns: width } = synthesis;
  const prepared: PreparedMatrix[] = [];
  const buffers: ArrayBuffer[] = [];
  const prepare = async (values: Float32Array, rows: number, columns: number): Promise<PreparedMatrix> => {
    const matrix = await backend.prepareMatrix(denseMatrix(values, rows, columns), 'f32');
    prepared.push(matrix);
    return matrix;
  };
  try {
    const blocks: PreparedMatrix[] = [];
    for (let head = 0; head < metric.heads; head++) {
      blocks.push(await prepare(metricBlock(metric, head), metric.headDim, metric.headDim));
    }
    const leading = Math.min(LEADING, rank);
    const rows = Math.min(rank, Math.max(LEADING, BLOCK_ROWS));
    const scratch = (length: number): Float32Array<ArrayBuffer> => {
      const values = new Float32Array(length);
      buffers.push(values.buffer);
      return values;
    };
    const [values, leaked, overlap] = [scratch(rows * width), scratch(rows * width), scratch(rows * leading)];
    const weighted = async (startRow: number, endRow: number): Promise<Float32Array> => {
      const out = values.subarray(0, (endRow - startRow) * width);
      await synthesis.read(startRow, endRow, out);
      await weigh(out, endRow - startRow, blocks, metric.headDim);
      return out;
    };
    const first = values.subarray(0, leading * width);
    await synthesis.read(0, leading, first);
    const leadingSynthesis = await prepare(first, leading, width);
    const turned = leaked.subarray(0, leading * width); // not needed yet
    transpose(await weighted(0, leading), leading, width, turned);
    const leadingAnalysis = await prepare(turned, width, leading);
    const dual = async (startRow: number, endRow: number): Promise<void> => {
      const count = endRow - startRow;
      const analysis = await weighted(startRow, endRow);
      const [shares, leak] = [overlap.subarray(0, count * leading), leaked.subarray(0, count * width)];
      await leadingSynthesis.multiply(analysis, count, shares);
      for (let row = startRow; row < Math.min(endRow, leading); row++) shares[(row - startRow) * leading + row]! -= 1;
      await leadingAnalysis.multiply(shares, count, leak);
      for (let i = 0; i < analysis.length; i++) analysis[i]! -= leak[i]!;
    };
    let block = { startRow: 0, endRow: 0 };
    return await use({
      rows: rank,
      columns: width,
      read: async (startRow, endRow, out) => {
        for (let row = startRow; row < endRow;) {
          if (row < block.startRow || row >= block.endRow) {
            const end = Math.min(rank, row + BLOCK_ROWS);
            await dual(row, end);
            block = { startRow: row, endRow: end };
          }
          const end = Math.min(endRow, block.endRow);
          const part = values.subarray((row - block.startRow) * width, (end - block.startRow) * width);
          out.set(part, (row - startRow) * width);
          row = end;
        }
      },
    });
  } finally {
    for (const matrix of prepared) matrix.close();
    // Left to the collector, tens of megabytes would stand through the coding that follows.
    for (const buffer of buffers) buffer.transfer(0);
  }
}

/** f32[headDim, headDim] of one head. */
function metricBlock({ headDim, packed }: HeadMetric, head: number): Float32Array {
  const block = new Float32Array(headDim * headDim);
  let at = head * triangleSize(headDim);
  for (let i = 0; i < headDim; i++) {
    for (let j = 0; j <= i; j++) block[i * headDim + j] = block[j * headDim + i] = packed[at++]!;
  }
  return block;
}

/** f32[count, heads · dim]: every head's part times its block, in place. */
async function weigh(rows: Float32Array, count: number, blocks: readonly PreparedMatrix[], dim: number): Promise<void> {
  const width = blocks.length * dim;
  const part = new Float32Array(count * dim);
  const product = new Float32Array(count * dim);
  for (const [head, block] of blocks.entries()) {
    for (let row = 0; row < count; row++) {
      const from = row * width + head * dim;
      part.set(rows.subarray(from, from + dim), row * dim);
    }
    await block.multiply(part, count, product);
    for (let row = 0; row < count; row++) {
      rows.set(product.subarray(row * dim, (row + 1) * dim), row * width + head * dim);
    }
  }
}
