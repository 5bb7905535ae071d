// The numeric seam: matrix products, and the two chunk stages built on them (engine rows ⇄ coefficients).
// Plain data in and out, so that a GPU backend can take over whole stages. Implementations: reference.ts (pure
// TypeScript, the oracle) and ggml/ (the engine's own library). One conformance suite runs both.
// Does not know: files, plans, quantisers, engines' state formats.

import type { LayerRange } from '../base/geometry.ts';
import type { RopeDescription } from '../rope/description.ts';

/** How the constant matrix of a product is held. q8_0 also rounds the other operand to 8 bits per 32 values. */
export type Precision = 'f32' | 'f16' | 'q8_0';

/** A matrix read by blocks of rows, so that a basis never needs to be whole in memory as f32. Row-major. */
export interface MatrixSource {
  readonly rows: number;
  readonly columns: number;
  /** Fills `out` f32[(endRow − startRow) · columns] with rows [startRow, endRow). */
  read(startRow: number, endRow: number, out: Float32Array): Promise<void>;
}

/** Engine rows of one stream: [layers][tokens][heads · headDim] of `element`, keys rotated as the engine holds them. */
export interface RowLayout {
  readonly layers: number;
  readonly heads: number;
  readonly headDim: number;
  readonly element: 'f32' | 'f16' | 'bf16';
}

/** Where rows lie in a larger buffer, such as an engine's state: the first layer's, and how far each next one is. */
export interface RowPlacement {
  readonly offsetBytes: number;
  readonly layerStrideBytes: number;
}

/** One stream's affine transform. Width p = layers · heads · headDim; component order is falling variance. */
export interface TransformSpec {
  readonly layout: RowLayout;
  /** f32[p], subtracted before analysis, added after synthesis. */
  readonly mean: Float32Array;
  /** [rank, p], component-major: row k takes coefficient k out of a centred token. */
  readonly analysis: MatrixSource;
  /** [rank, p], component-major: row k is what coefficient k adds to a token. An orthonormal basis is both. */
  readonly synthesis: MatrixSource;
  /** Present for keys: undone before centring, redone after synthesis, at each token's own position. */
  readonly rope: RopeDescription | null;
  readonly precision: Precision;
}

/** c = (unrope(rows) − mean) · analysisᵀ, for up to any number of tokens a call. */
export interface Analysis {
  readonly rank: number;
  /**
   * `rows` engine rows of `positions.length` tokens in the layout of the spec; fills `out` f32[tokens, rank].
   * Without a placement `rows` holds them layer after layer and nothing else. Non-finite input gives non-finite output;
   * callers check.
   */
  project(rows: Uint8Array, positions: Int32Array, out: Float32Array, placement?: RowPlacement): Promise<void>;
  close(): void;
}

/** Products take coefficients in whole blocks of so many. */
export const TERM_BLOCK = 32;

/** Next multiple of TERM_BLOCK. */
export function padded(count: number): number {
  return Math.ceil(count / TERM_BLOCK) * TERM_BLOCK;
}

/** Coefficients of some tokens. */
export interface Coefficients {
  /** f32[tokens, rank] */
  readonly values: Float32Array;
  /**
   * i32[tokens]: how many of a token's come before nothing but zeros, which a product may leave out. It reads none beyond the
   * most of any token, rounded up to TERM_BLOCK. Default: all.
   */
  readonly leading?: Int32Array | undefined;
}

/** rows = rope(c · synthesis + mean), whole or for a range of layers (which takes only its own rows of the matrix). */
export interface Synthesis {
  readonly rank: number;
  /**
   * Fills `out` with engine rows [endLayer − startLayer][tokens][heads · headDim], or
   * puts them where the placement says, of which the first layer is the range's.
   */
  reconstruct(
    coefficients: Coefficients,
    positions: Int32Array,
    layers: LayerRange,
    out: Uint8Array,
    placement?: RowPlacement,
  ): Promise<void>;
  close(): void;
}

/** A constant matrix [rows, columns] ready to multiply. */
export interface PreparedMatrix {
  readonly rows: number;
  readonly columns: number;
  /**
   * `x` f32[n, columns]; fills `out` f32[n, rows] with x · matrixᵀ, or f32[n, endRow − startRow] with the product by
   * rows [startRow, endRow) of the matrix alone.
   */
  multiply(
    x: Float32Array,
    n: number,
    out: Float32Array,
    range?: { readonly startRow: number; readonly endRow: number },
  ): Promise<void>;
  close(): void;
}

export interface Backend {
  readonly id: string;
  readonly threads: number;
  prepareMatrix(matrix: MatrixSource, precision: Precision): Promise<PreparedMatrix>;
  /** Rank is the matrices' rows; p and rank need not be multiples of 32 (the backend pads). */
  prepareAnalysis(spec: TransformSpec): Promise<Analysis>;
  prepareSynthesis(spec: TransformSpec): Promise<Synthesis>;
  /** Engine rows → f32[tokens, p] with RoPE undone: what calibration sees. */
  readRows(
    layout: RowLayout,
    rope: RopeDescription | null,
    rows: Uint8Array,
    positions: Int32Array,
    out: Float32Array,
  ): Promise<void>;
  /** The inverse: f32[tokens, p] → engine rows, RoPE redone. */
  writeRows(
    layout: RowLayout,
    rope: RopeDescription | null,
    values: Float32Array,
    positions: Int32Array,
    out: Uint8Array,
  ): Promise<void>;
  close(): void;
}
