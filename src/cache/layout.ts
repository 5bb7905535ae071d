// Which tokens are kept exact and how the rest is cut into chunks (paper §2 sinks and window, readings R5, R6, R14).
// Pure arithmetic on token ranges; knows no bytes.

import { KvtcError } from '../base/errors.ts';
import type { TokenRange } from '../base/geometry.ts';

export interface LayoutOptions {
  /** Oldest tokens kept exact. */
  readonly sinks: number;
  /** Newest tokens kept exact; 0 is the windowless mode, in which equal prefixes give equal chunks. */
  readonly window: number;
  /** Further tokens to keep exact, in any order; may overlap. */
  readonly exactRanges: readonly TokenRange[];
  readonly chunkTokens: number;
}

export interface TokenLayout {
  /** Sorted, disjoint, not touching each other. */
  readonly exact: readonly TokenRange[];
  /** Sorted, tiling all other tokens; cut at multiples of chunkTokens counted from the end of the sinks. */
  readonly chunks: readonly TokenRange[];
}

/**
 * Lays out a sequence of `tokenCount` tokens. A sequence no longer than sinks + window is exact throughout.
 * Throws KVTC_OPTION_INVALID for negative or fractional counts, or ranges outside the sequence.
 */
export function layOutTokens(tokenCount: number, options: LayoutOptions): TokenLayout {
  const { sinks, window, chunkTokens } = options;
  for (const [name, value, least] of [
    ['sinks', sinks, 0],
    ['window', window, 0],
    ['chunkTokens', chunkTokens, 1],
  ] as const) {
    if (!Number.isSafeInteger(value) || value < least) {
      throw new KvtcError('KVTC_OPTION_INVALID', `${name} is ${value}; expected an integer of at least ${least}`, {
        option: name,
        got: value,
      });
    }
  }
  for (const { startToken, endToken } of options.exactRanges) {
    if (
      !(
        Number.isSafeInteger(startToken) &&
        Number.isSafeInteger(endToken) &&
        startToken >= 0 &&
        startToken < endToken &&
        endToken <= tokenCount
      )
    ) {
      throw new KvtcError(
        'KVTC_OPTION_INVALID',
        `exact range [${startToken}, ${endToken}) does not lie in the ${tokenCount} tokens`,
        { startToken, endToken, tokenCount },
      );
    }
  }
  const exact = mergeRanges([
    { startToken: 0, endToken: Math.min(sinks, tokenCount) },
    ...options.exactRanges,
    { startToken: Math.max(0, tokenCount - window), endToken: tokenCount },
  ]);
  const origin = Math.min(sinks, tokenCount);
  const chunks: TokenRange[] = [];
  let from = 0;
  for (const range of [...exact, { startToken: tokenCount, endToken: tokenCount }]) {
    for (let start = from; start < range.startToken;) {
      const boundary =
        start < origin ? origin : origin + (Math.floor((start - origin) / chunkTokens) + 1) * chunkTokens;
      const end = Math.min(boundary, range.startToken);
      chunks.push({ startToken: start, endToken: end });
      start = end;
    }
    from = range.endToken;
  }
  return { exact, chunks };
}

function mergeRanges(ranges: readonly TokenRange[]): TokenRange[] {
  const sorted = ranges.filter((r) => r.startToken < r.endToken).toSorted((a, b) => a.startToken - b.startToken);
  const out: TokenRange[] = [];
  for (const range of sorted) {
    const last = out.at(-1);
    if (last !== undefined && range.startToken <= last.endToken) {
      out[out.length - 1] = { startToken: last.startToken, endToken: Math.max(last.endToken, range.endToken) };
    } else {
      out.push(range);
    }
  }
  return out;
}
