// The one place where compression ratios are computed (definitions with a worked example: docs/accounting.md).
// Knows bytes and tokens only; does not know codecs, engines or file layouts.

import type { TokenRange } from '../base/geometry.ts';
import { invariant } from '../base/errors.ts';

/** Bytes the paper counts a value of the original cache as, whatever the engine's element type. */
export const PAPER_VALUE_BYTES = 2;

/** Byte and token counts of one compressed cache, or sums over several: ratios of sums weigh every byte alike. */
export interface CacheCounts {
  /** Coded values of one token, keys and values together: both streams' p. */
  readonly valuesPerToken: number;
  readonly tokenCount: number;
  /** Newest tokens kept exact: the paper's window, left out of its ratio. */
  readonly windowTokens: number;
  /** All other tokens kept exact (sinks and further exact ranges), counted at 16 bit a value. */
  readonly sinkTokens: number;
  /** Chunk bytes after the entropy stage, block headers included. */
  readonly chunkBytes: number;
}

export interface Ratios {
  /** The paper's CR: 16-bit bytes of all tokens but the window ÷ stored bytes of the same tokens. */
  readonly paperRatio: number;
  /** The cache as the engine holds it ÷ the whole file. */
  readonly effectiveRatio: number;
}

/** originalBytes ÷ storedBytes; 1 where both are 0 (nothing to store, nothing stored). */
export function ratio(originalBytes: number, storedBytes: number): number {
  invariant(originalBytes >= 0 && storedBytes >= 0, `ratio of ${originalBytes} to ${storedBytes} bytes`);
  return originalBytes === 0 && storedBytes === 0 ? 1 : originalBytes / storedBytes;
}

/** The paper's compression ratio (§4, T6 caption; sinks at 16 bit, reading R7). */
export function paperRatio(counts: CacheCounts): number {
  const tokenBytes = counts.valuesPerToken * PAPER_VALUE_BYTES;
  const countedTokens = counts.tokenCount - counts.windowTokens;
  return ratio(tokenBytes * countedTokens, counts.chunkBytes + tokenBytes * counts.sinkTokens);
}

/** Every byte of the file against every byte of the cache at the engine's element types. */
export function effectiveRatio(rawBytes: number, fileBytes: number): number {
  return ratio(rawBytes, fileBytes);
}

/** A part of a container file, as its writer names it. */
interface FilePart {
  readonly kind: string;
  readonly byteLength: number;
}

/** The newest tokens of a sequence that are exact, beyond the sinks: what the paper's ratio leaves out. */
export function windowTokens(tokenCount: number, sinks: number, exactRanges: readonly TokenRange[]): number {
  const last = exactRanges.find(({ endToken }) => endToken === tokenCount);
  return last === undefined ? 0 : Math.max(0, tokenCount - Math.max(last.startToken, sinks));
}

/** Both ratios of a container. `rawBytes`: the cache at the engine's element types. */
export function containerRatios(container: {
  readonly valuesPerToken: number;
  readonly tokenCount: number;
  readonly sinks: number;
  readonly exactRanges: readonly TokenRange[];
  readonly parts: readonly FilePart[];
  readonly rawBytes: number;
  readonly byteLength: number;
}): Ratios {
  const { valuesPerToken, tokenCount, sinks, exactRanges, parts } = container;
  const window = windowTokens(tokenCount, sinks, exactRanges);
  const exactTokens = exactRanges.reduce((sum, range) => sum + range.endToken - range.startToken, 0);
  const chunkBytes = parts.reduce((sum, part) => sum + (part.kind === 'chunk' ? part.byteLength : 0), 0);
  return {
    paperRatio: paperRatio({
      valuesPerToken,
      tokenCount,
      windowTokens: window,
      sinkTokens: exactTokens - window,
      chunkBytes,
    }),
    effectiveRatio: effectiveRatio(container.rawBytes, container.byteLength),
  };
}
