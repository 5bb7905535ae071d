// Streaming first and second moments of one stream's rows. Sums are integers times a power of two held in f64, so that
// addition is associative: segments may be added in any order, in one run or in several, and give the same bits.
// Does not know: where rows come from, files (moments-file.ts), how a basis is fitted.

import { KvtcError, invariant } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { Backend, MatrixSource, Precision } from '../linalg/backend.ts';
import { dot, triangleSize } from '../linalg/dense.ts';

/** Rows multiplied at once; a segment's last chunk may be shorter. */
const CHUNK_ROWS = 1024;
/** Features per tile of the product matrix; tiles right of the diagonal are skipped. */
const TILE_FEATURES = 512;
/**
 * Sums are rounded to 2^-16 in units where a feature's variance is about 1: 2^-17 per chunk of 1 024 rows is far under
 * f32's rounding of the product, and 2^53 leaves room for 2^23 rows of 2^14 times that variance.
 */
const GRID = 2 ** 16;
/** Adding and subtracting it rounds a double under 2^51 to the nearest integer, ties to even. */
const ROUNDER = 1.5 * 2 ** 52;
const LIMIT = 2 ** 53;

/** What moments of several runs must share to be added: made once, from the first rows of the calibration. */
export interface MomentsFrame {
  /** Names model, stream and texts; moments with different keys are not added. */
  readonly key: string;
  /** The paper's p. */
  readonly width: number;
  /** f32[width], near each feature's mean; subtracted before anything is multiplied. */
  readonly shift: Float32Array;
  /** i16[width]; features are divided by 2^exponent, about their standard deviation. */
  readonly exponents: Int16Array;
}

/** Sums over the rows seen. Rows mean y = (x − shift)·2^−exponent; all sums are in units of 1 / GRID. */
export interface Moments {
  readonly frame: MomentsFrame;
  rows: number;
  /** f64[width]: Σ y. */
  readonly sums: Float64Array;
  /** f64[width·(width+1)/2]: Σ yᵢ·yⱼ for j ≤ i, at i·(i+1)/2 + j. */
  readonly products: Float64Array;
}

/** Takes mean and power-of-two spread of every feature from f32[rowCount, width]; a few hundred rows are enough. */
export function fitMomentsFrame(rows: Float32Array, rowCount: number, width: number, key: string): MomentsFrame {
  invariant(
    rowCount > 0 && rows.length === rowCount * width,
    `frame rows ${rows.length}, expected ${rowCount} × ${width}`,
  );
  const sum = new Float64Array(width);
  const squares = new Float64Array(width);
  for (let r = 0; r < rowCount; r++) {
    for (let c = 0, at = r * width; c < width; c++, at++) sum[c]! += rows[at]!;
  }
  const shift = Float32Array.from(sum, (value) => value / rowCount);
  checkFinite(shift);
  for (let r = 0; r < rowCount; r++) {
    for (let c = 0, at = r * width; c < width; c++, at++) squares[c]! += (rows[at]! - shift[c]!) ** 2;
  }
  const largest = squares.reduce((a, b) => Math.max(a, b), 0) / rowCount;
  // A feature that rests in these rows may move later, so it gets a unit nearer to the others'. One under 2^-30 of the
  // largest variance is lost in f32 beside it anyway.
  const exponents = Int16Array.from(squares, (value) => {
    const variance = value === 0 ? largest * 2 ** -12 : Math.max(value / rowCount, largest * 2 ** -30);
    return variance === 0 ? 0 : Math.max(-120, Math.ceil(Math.log2(variance) / 2));
  });
  return { key, width, shift, exponents };
}

/** Empty moments. Takes 4·width² bytes. */
export function createMoments(frame: MomentsFrame): Moments {
  return {
    frame,
    rows: 0,
    sums: new Float64Array(frame.width),
    products: new Float64Array(triangleSize(frame.width)),
  };
}

/**
 * Moments from means about a shift: f32[width] shift, f64[width] mean of x − shift, and f64[width·(width+1)/2] mean of
 * (xᵢ − shiftᵢ)·(xⱼ − shiftⱼ), which is taken over and changed. Sums off the grid are as good for fitting; only adding
 * them would depend on the order, so the key should be one that nothing else has.
 */
export function momentsFromMeans(
  key: string,
  means: {
    readonly rows: number;
    readonly shift: Float32Array;
    readonly mean: Float64Array;
    readonly second: Float64Array;
  },
): Moments {
  const { rows, shift, mean, second: products } = means;
  const width = shift.length;
  invariant(mean.length === width && products.length === triangleSize(width), `means of ${width} features`);
  const unit = GRID * rows;
  for (let i = 0; i < products.length; i++) products[i]! *= unit;
  return {
    frame: { key, width, shift, exponents: new Int16Array(width) },
    rows,
    sums: mean.map((value) => value * unit),
    products,
  };
}

export interface AccumulateOptions extends RunOptions {
  readonly backend: Backend;
  /** Of the products; the diagonal is always f64. Default q8_0: its noise is under 1 % of the sampling noise. */
  readonly precision?: Precision | undefined;
}

/**
 * Adds one segment f32[rowCount, width]. Segments are cut into chunks from their own start, so the same set of segments
 * gives the same bits in any order; a failure or abort leaves `moments` as they were only before the first chunk, so
 * discard them then. Throws KVTC_ROWS_NOT_FINITE, KVTC_MOMENTS_OVERFLOW, KVTC_ABORTED.
 */
export async function accumulateMoments(
  moments: Moments,
  rows: Float32Array,
  rowCount: number,
  options: AccumulateOptions,
): Promise<void> {
  const { width } = moments.frame;
  invariant(rows.length === rowCount * width, `segment of ${rows.length} values, expected ${rowCount} × ${width}`);
  for (let start = 0; start < rowCount; start += CHUNK_ROWS) {
    throwIfAborted(options.signal);
    const count = Math.min(CHUNK_ROWS, rowCount - start);
    await addChunk(moments, rows.subarray(start * width, (start + count) * width), count, options);
    moments.rows += count;
  }
}

/** Adds `other` into `moments`. Throws KVTC_MOMENTS_MISMATCH unless both have the same frame. */
export function mergeMoments(moments: Moments, other: Moments): void {
  const a = moments.frame;
  const b = other.frame;
  const same =
    a.key === b.key &&
    a.width === b.width &&
    a.shift.every((value, i) => Object.is(value, b.shift[i])) &&
    a.exponents.every((value, i) => value === b.exponents[i]);
  if (!same) {
    throw new KvtcError('KVTC_MOMENTS_MISMATCH', `moments of "${b.key}" cannot be added to those of "${a.key}"`, {
      expectedKey: a.key,
      gotKey: b.key,
      expectedWidth: a.width,
      gotWidth: b.width,
    });
  }
  moments.rows += other.rows;
  for (let i = 0; i < moments.sums.length; i++) moments.sums[i]! += other.sums[i]!;
  for (let i = 0; i < moments.products.length; i++) moments.products[i]! += other.products[i]!;
  checkRoom(moments);
}

/** f32[width]: the rows' mean. */
export function meanOf(moments: Moments): Float32Array {
  const about = meanAboutShift(moments);
  return moments.frame.shift.map((value, i) => value + about[i]!);
}

/** f64[width]: the rows' mean less the frame's shift. */
export function meanAboutShift(moments: Moments): Float64Array {
  const { exponents } = moments.frame;
  return Float64Array.from(exponents, (exponent, i) => scaledMean(moments, i) * 2 ** exponent);
}

/** f64[width]: each feature's variance (divided by the row count). */
export function variancesOf(moments: Moments): Float64Array {
  const about = meanAboutShift(moments);
  return about.map((mean, i) => meanProductAt(moments, i, i) - mean ** 2);
}

/** The covariance matrix [width, width], f32, read by blocks of rows. */
export function covarianceMatrix(moments: Moments): MatrixSource {
  const { width, exponents } = moments.frame;
  const { products, rows } = moments;
  const means = Float64Array.from({ length: width }, (_, i) => scaledMean(moments, i));
  const scales = Float64Array.from(exponents, (exponent) => 2 ** exponent);
  const unit = 1 / (GRID * rows);
  return {
    rows: width,
    columns: width,
    read: (startRow, endRow, out) => {
      for (let i = startRow; i < endRow; i++) {
        const to = (i - startRow) * width;
        for (let j = 0, at = triangleSize(i); j <= i; j++, at++) {
          out[to + j] = (products[at]! * unit - means[i]! * means[j]!) * scales[i]! * scales[j]!;
        }
      }
      // Right of the diagonal: read each column's stretch of the triangle in one go.
      for (let j = startRow + 1; j < width; j++) {
        const at = triangleSize(j);
        for (let i = startRow, end = Math.min(endRow, j); i < end; i++) {
          out[(i - startRow) * width + j] =
            (products[at + i]! * unit - means[i]! * means[j]!) * scales[i]! * scales[j]!;
        }
      }
      return Promise.resolve();
    },
  };
}

function scaledMean(moments: Moments, i: number): number {
  return moments.sums[i]! / (GRID * moments.rows);
}

/** Mean of (xᵢ − shiftᵢ)·(xⱼ − shiftⱼ), j ≤ i. */
export function meanProductAt({ frame, products, rows }: Moments, i: number, j: number): number {
  const { exponents } = frame;
  return (products[triangleSize(i) + j]! / (GRID * rows)) * 2 ** (exponents[i]! + exponents[j]!);
}

async function addChunk(
  moments: Moments,
  rows: Float32Array,
  count: number,
  options: AccumulateOptions,
): Promise<void> {
  const { width } = moments.frame;
  const { sums, products } = moments;
  const turned = centredTranspose(moments.frame, rows, count); // [width, count]
  const chunkSums = new Float64Array(width);
  const chunkSquares = new Float64Array(width);
  for (let i = 0; i < width; i++) {
    const feature = turned.subarray(i * count, (i + 1) * count);
    let sum = 0;
    for (let r = 0; r < count; r++) sum += feature[r]!;
    chunkSums[i] = sum;
    chunkSquares[i] = dot(feature, feature);
  }
  checkFinite(chunkSquares);
  const source: MatrixSource = {
    rows: width,
    columns: count,
    read: (start, end, out) => {
      out.set(turned.subarray(start * count, end * count));
      return Promise.resolve();
    },
  };
  const matrix = await options.backend.prepareMatrix(source, options.precision ?? 'q8_0');
  try {
    let finish = (): void => undefined;
    for (let i0 = 0; i0 < width; i0 += TILE_FEATURES) {
      const i1 = Math.min(width, i0 + TILE_FEATURES);
      const tile = new Float32Array((i1 - i0) * i1);
      const range = { startRow: 0, endRow: i1 };
      const product = matrix.multiply(turned.subarray(i0 * count, i1 * count), i1 - i0, tile, range);
      finish(); // adds the tile before, while this one is multiplied
      await product;
      finish = () => addTile(products, tile, i0, i1);
    }
    finish();
  } finally {
    matrix.close();
  }
  for (let i = 0; i < width; i++) {
    sums[i]! += onGrid(chunkSums[i]!);
    products[triangleSize(i) + i]! += onGrid(chunkSquares[i]!);
  }
  checkRoom(moments);
}

/** (x − shift)·2^−exponent, transposed to f32[width, count]. */
function centredTranspose(frame: MomentsFrame, rows: Float32Array, count: number): Float32Array {
  const { width, shift } = frame;
  const scales = Float32Array.from(frame.exponents, (exponent) => 2 ** -exponent);
  const out = new Float32Array(width * count);
  const tile = 32;
  for (let r0 = 0; r0 < count; r0 += tile) {
    const r1 = Math.min(count, r0 + tile);
    for (let c0 = 0; c0 < width; c0 += tile) {
      const c1 = Math.min(width, c0 + tile);
      for (let r = r0; r < r1; r++) {
        for (let c = c0; c < c1; c++) out[c * count + r] = (rows[r * width + c]! - shift[c]!) * scales[c]!;
      }
    }
  }
  return out;
}

/** Adds rows [i0, i1) × columns left of the diagonal. The diagonal itself is summed in f64 elsewhere. */
function addTile(products: Float64Array, tile: Float32Array, i0: number, i1: number): void {
  for (let i = i0; i < i1; i++) {
    let from = (i - i0) * i1;
    for (let at = triangleSize(i), end = at + i; at < end; at++, from++) {
      products[at]! += tile[from]! * GRID + ROUNDER - ROUNDER;
    }
  }
}

function onGrid(value: number): number {
  return value * GRID + ROUNDER - ROUNDER;
}

function checkFinite(values: ArrayLike<number>): void {
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) {
      throw new KvtcError('KVTC_ROWS_NOT_FINITE', `calibration rows hold NaN or Inf in feature ${i}`, { feature: i });
    }
  }
}

/** By Cauchy-Schwarz the diagonal bounds every product, and it bounds the sums too. */
function checkRoom(moments: Moments): void {
  for (let i = 0; i < moments.frame.width; i++) {
    if (moments.products[triangleSize(i) + i]! >= LIMIT || Math.abs(moments.sums[i]!) >= LIMIT) {
      throw new KvtcError(
        'KVTC_MOMENTS_OVERFLOW',
        `feature ${i} outgrew its sums after ${moments.rows} rows: its spread in the first rows was far from typical`,
        { feature: i, rows: moments.rows },
      );
    }
  }
}
