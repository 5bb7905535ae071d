// The shape of a model's KV cache, as every room counts it. Does not know any engine or file format.

/** Keys and values are coded as two independent streams (paper §3). */
export type StreamKind = 'key' | 'value';
export const STREAMS: readonly StreamKind[] = ['key', 'value'];

export interface CacheGeometry {
  readonly layers: number;
  readonly kvHeads: number;
  readonly keyHeadDim: number;
  readonly valueHeadDim: number;
}

/** Half-open range of token indices within a cached sequence. */
export interface TokenRange {
  readonly startToken: number;
  /** exclusive */
  readonly endToken: number;
}

/** Half-open range of layers. */
export interface LayerRange {
  readonly startLayer: number;
  /** exclusive */
  readonly endLayer: number;
}

/** Element types of cache rows that states are read and written in. */
export type ElementType = 'f32' | 'f16' | 'bf16' | 'q8_0';

/** Element types an engine can hold a cache in; states of the others than ElementType are refused by name. */
export type CacheType = ElementType | 'q5_1' | 'q5_0' | 'q4_1' | 'q4_0';

/** Bytes of 32 values: codes, an f16 scale, and in the `_1` types an f16 minimum. */
const BLOCK_BYTES = { q8_0: 34, q5_1: 24, q5_0: 22, q4_1: 20, q4_0: 18 } as const;

/** True for types that share a scale between 32 values. */
export function isBlockType(type: CacheType): type is keyof typeof BLOCK_BYTES {
  return type in BLOCK_BYTES;
}

/** Dimensions of one head of the stream. */
export function headDim(geometry: CacheGeometry, stream: StreamKind): number {
  return stream === 'key' ? geometry.keyHeadDim : geometry.valueHeadDim;
}

/** Values one token has in one layer of the stream: kvHeads · headDim. */
export function layerWidth(geometry: CacheGeometry, stream: StreamKind): number {
  return geometry.kvHeads * headDim(geometry, stream);
}

/** Values one token has in all layers of the stream: the paper's p. */
export function streamWidth(geometry: CacheGeometry, stream: StreamKind): number {
  return geometry.layers * layerWidth(geometry, stream);
}

/** Bytes of `values` elements of a type. Block types pack 32 values; the caller keeps rows a multiple of 32. */
export function elementBytes(type: CacheType, values: number): number {
  if (type === 'f32') return values * 4;
  return isBlockType(type) ? (values / 32) * BLOCK_BYTES[type] : values * 2;
}
