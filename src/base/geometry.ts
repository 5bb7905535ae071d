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

/** Element types a cache row may have in an engine. */
export type ElementType = 'f32' | 'f16' | 'bf16' | 'q8_0';

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

/** Bytes of `values` elements of a type. q8_0 packs 32 values into 34 bytes; the caller keeps rows a multiple of 32. */
export function elementBytes(type: ElementType, values: number): number {
  if (type === 'f32') return values * 4;
  if (type === 'q8_0') return (values / 32) * 34;
  return values * 2;
}
