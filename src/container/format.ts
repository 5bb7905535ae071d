// Constants and sizes of .kvtc 1.0 that writer and reader share (docs/format/container.md, sections 2 to 5).
// Reads and writes nothing.

import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { elementBytes, layerWidth, STREAMS } from '../base/geometry.ts';
import type { ContainerHeader, ContainerLimits } from './types.ts';

/** PNG's idea: an eighth bit, both line ends and an old end-of-file mark, so that text-mode transfers show. */
export const MAGIC: Uint8Array = Uint8Array.of(0x89, 0x4b, 0x56, 0x54, 0x0d, 0x0a, 0x1a, 0x0a);
export const VERSION = { major: 1, minor: 0 } as const;

export const PREAMBLE_BYTES = 64;
/** Preamble bytes that the head checksum covers; the checksum itself fills the rest. */
export const CHECKED_PREAMBLE_BYTES = 60;
export const SECTION_ENTRY_BYTES = 24;
export const CHUNK_ENTRY_BYTES = 24;
export const POSITION_RUN_BYTES = 8;
/** A cache line, and enough for any mapped typed array. */
const ALIGNMENT_BYTES = 64;

/** Section kinds; they stand in the file in this order. */
export const SectionKind = {
  header: 1,
  exactRows: 2,
  payload: 3,
  exactChecksums: 4,
  chunkIndex: 5,
  positions: 6,
  tokens: 7,
} as const;
/** Kinds from here on may be ignored by readers that do not know them. */
export const FIRST_ANCILLARY_KIND = 0x80000000;

/** Room for contexts of millions of tokens, and small enough that a hostile file cannot exhaust a laptop. */
export const DEFAULT_LIMITS: ContainerLimits = Object.freeze({
  headerBytes: 1 << 20,
  sections: 32,
  tokens: 1 << 24,
  chunks: 1 << 20,
  chunkTokens: 1 << 14,
  packedChunkBytes: 1 << 28,
  storedChunkBytes: 1 << 28,
  exactLayerBytes: 1 << 30,
});

export function alignUp(offsetBytes: number): number {
  return Math.ceil(offsetBytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}

export interface SectionEntry {
  readonly kind: number;
  readonly crc32: number;
  readonly offsetBytes: number;
  readonly byteLength: number;
}

/** One exact range of one stream within the exact rows section. */
export interface ExactBlock {
  readonly stream: StreamKind;
  readonly rangeIndex: number;
  readonly tokens: TokenRange;
  readonly layers: number;
  readonly layerBytes: number;
  /** From the start of the section. */
  readonly offsetBytes: number;
  /** Index of its first checksum. */
  readonly firstChecksum: number;
}

export interface ExactLayout {
  /** In file order; block of (range, stream) is `blocks[rangeIndex · 2 + streamNumber]`. */
  readonly blocks: readonly ExactBlock[];
  readonly byteLength: number;
  readonly checksums: number;
}

/** Where exact rows lie. Sums may pass 2^53 for hostile headers; they then equal no section length. */
export function exactLayout(header: ContainerHeader): ExactLayout {
  const { geometry } = header.model;
  const blocks: ExactBlock[] = [];
  let offsetBytes = 0;
  let firstChecksum = 0;
  header.exactRanges.forEach((tokens, rangeIndex) => {
    for (const stream of STREAMS) {
      const tokenBytes = elementBytes(header.elementTypes[stream], layerWidth(geometry, stream));
      const layerBytes = (tokens.endToken - tokens.startToken) * tokenBytes;
      blocks.push({ stream, rangeIndex, tokens, layers: geometry.layers, layerBytes, offsetBytes, firstChecksum });
      offsetBytes += layerBytes * geometry.layers;
      firstChecksum += geometry.layers;
    }
  });
  return { blocks, byteLength: offsetBytes, checksums: firstChecksum };
}

export function streamNumber(stream: StreamKind): 0 | 1 {
  return stream === 'key' ? 0 : 1;
}
