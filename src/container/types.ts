// The .kvtc container as data: header, chunk entries, parts, limits, and the writer and reader seams.
// Byte layout: docs/format/container.md. Does not know: what a codec's parameters or a chunk's bytes mean.

import type { CacheGeometry, ElementType, LayerRange, StreamKind, TokenRange } from '../base/geometry.ts';

/** Any JSON value; numbers are finite. */
export type JsonValue =
  | null
  | boolean
  | number
  | string
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue | undefined };
export type JsonObject = { readonly [key: string]: JsonValue | undefined };

/** Which model the cache came from. Structurally the profile room's ModelIdentity, which this room may not import. */
export interface ContainerModel {
  readonly architecture: string;
  readonly name: string;
  readonly geometry: CacheGeometry;
  readonly rope: {
    readonly pairing: 'interleaved' | 'half-split';
    readonly dims: number;
    readonly frequencyBase: number;
    readonly frequencyScale: number;
    readonly extFactor: number;
    readonly attnFactor: number;
    readonly betaFast: number;
    readonly betaSlow: number;
    readonly originalContext: number;
    readonly frequencyFactors: readonly number[] | null;
  };
  /** sha256, hex. */
  readonly fingerprint: string;
}

/** The header section: everything about a cached sequence except its bytes. */
export interface ContainerHeader {
  /** Program and version that wrote the file, such as `kvtc 0.1.0`. */
  readonly producer: string;
  /** Codec id, such as `kvtc-paper`: lower case letters, digits, `-`, `.`. */
  readonly codec: string;
  /** Opaque here: ratio and bit plans for the paper's codec. Written in canonical JSON. */
  readonly codecParameters: JsonObject;
  /** Entropy method id of every chunk, such as `deflate` or `zstd`; same alphabet as `codec`. */
  readonly entropy: string;
  /** sha256, hex: `Profile.id`. */
  readonly profileId: string;
  readonly model: ContainerModel;
  /** Tokens of the whole sequence, at least 1. */
  readonly tokenCount: number;
  /** No chunk is longer than this. */
  readonly chunkTokens: number;
  /** Element types of the exact rows, as found in the cache. */
  readonly elementTypes: Readonly<Record<StreamKind, ElementType>>;
  /** Tokens kept exact: sorted, not empty, neither overlapping nor touching. */
  readonly exactRanges: readonly TokenRange[];
  /** Free note on the engine and its build. */
  readonly engine: string;
}

/** What a chunk holds, before it is written. */
export interface ChunkDescription extends TokenRange {
  readonly stream: StreamKind;
  /** Length before the entropy stage. */
  readonly packedBytes: number;
}

/** One chunk as the index knows it. */
export interface ChunkEntry extends ChunkDescription {
  /** Length after the entropy stage, as stored. */
  readonly storedBytes: number;
  readonly crc32: number;
  /** From the start of the file. */
  readonly offsetBytes: number;
}

export type PartKind =
  | 'preamble'
  | 'section-table'
  | 'padding'
  | 'header'
  | 'exact-rows'
  | 'chunk'
  | 'exact-checksums'
  | 'chunk-index'
  | 'positions'
  | 'tokens'
  | 'ancillary';

/** A named byte range of the file. All parts together are the file, in order, without gap or overlap. */
export interface ContainerPart {
  readonly kind: PartKind;
  readonly offsetBytes: number;
  readonly byteLength: number;
  /** For exact rows and chunks. */
  readonly stream?: StreamKind;
  readonly tokens?: TokenRange;
}

/** Bounds a reader enforces before it allocates. Bigger files are refused with KVTC_CONTAINER_LIMIT. */
export interface ContainerLimits {
  readonly headerBytes: number;
  readonly sections: number;
  readonly tokens: number;
  readonly chunks: number;
  /** Of one chunk: bounds what its coefficients and rows take once decoded. */
  readonly chunkTokens: number;
  /** Of one chunk, before the entropy stage: what a decompressor may be asked to allocate. */
  readonly packedChunkBytes: number;
  /** Of one chunk as stored, and of one ancillary section. */
  readonly storedChunkBytes: number;
  /** Of one layer's exact rows in one range. */
  readonly exactLayerBytes: number;
}

/**
 * Where a writer puts its bytes. `write` may be called at any offset, more than once at a time; ranges never overlap.
 * Nothing may be visible to readers before `commit`; `discard` leaves nothing behind. Both are called at most once.
 */
export interface ContainerTarget {
  write(bytes: Uint8Array, offsetBytes: number): Promise<void>;
  commit(byteLength: number): Promise<void>;
  discard(): Promise<void>;
}

export interface FinishedContainer {
  readonly byteLength: number;
  readonly parts: readonly ContainerPart[];
}

/**
 * Streams one container. Exact rows and chunks are two independent sequences; each must come in file order:
 * exact rows by range, then key before value, then layers; chunks by startToken, then key before value.
 * Calls need not be awaited one by one. Input arrays must stay unchanged until the call resolves.
 * A failed write discards everything and throws KVTC_WRITE_FAILED with its cause.
 */
export interface ContainerWriter {
  /** i32[tokenCount], ≥ 0. Leave out when the ids are unknown. */
  writeTokens(tokens: Int32Array): void;
  /** i32[tokenCount], ≥ 0. */
  writePositions(positions: Int32Array): void;
  /** `rows`: [layers][tokens of the range][layerWidth] of the stream's element type; all layers unless given. */
  writeExactRows(stream: StreamKind, rangeIndex: number, rows: Uint8Array, layers?: LayerRange): Promise<void>;
  writeChunk(chunk: ChunkDescription, stored: Uint8Array): Promise<void>;
  /** Checks completeness, writes the rest, makes the file visible. */
  finish(): Promise<FinishedContainer>;
  /** Leaves no file behind. Harmless after finish or a failure. */
  abort(): Promise<void>;
}

/**
 * An opened container. Opening has checked everything but the data (exact rows and chunks), which is checked block by
 * block as it is read. Holds a file handle: close it.
 */
export interface Container {
  readonly header: ContainerHeader;
  readonly version: { readonly major: number; readonly minor: number };
  readonly byteLength: number;
  /** i32[tokenCount], or null when the writer did not know them. */
  readonly tokens: Int32Array | null;
  /** i32[tokenCount] */
  readonly positions: Int32Array;
  /** Sorted by startToken, then key before value; each stream tiles all tokens outside the exact ranges. */
  readonly chunks: readonly ChunkEntry[];
  /** Bytes [layers][tokens of the range][layerWidth]; all layers unless given. Throws KVTC_CONTAINER_CHECKSUM. */
  readExactRows(stream: StreamKind, rangeIndex: number, layers?: LayerRange): Promise<Uint8Array>;
  /** The chunk's stored bytes (still entropy-coded). Throws KVTC_CONTAINER_CHECKSUM. */
  readChunk(entry: ChunkEntry): Promise<Uint8Array>;
  /** Every byte of the file by name; lengths sum to `byteLength`. */
  parts(): readonly ContainerPart[];
  /** Reads every byte and checks every checksum and rule. Memory stays under the largest block. */
  verify(options?: { readonly signal?: AbortSignal }): Promise<void>;
  close(): Promise<void>;
}
