// Where the values of a packed chunk lie: split planes, reading R5 (page: docs/format/paper-codec.md).
// Does not know: arithmetic of the quantisers, entropy coding.

import type { GroupType, PaperPlan } from './plan.ts';
import { CODE_BITS } from './plan.ts';

/** One group's places in a packed chunk of a given number of tokens. Offsets and lengths in bytes. */
export interface GroupPlace {
  readonly start: number;
  readonly size: number;
  readonly type: GroupType;
  readonly exponent: number;
  /** Integer types: plane of fp16 minima, one per token; the plane of fp16 steps. 0 for fp8. */
  readonly minOffsetBytes: number;
  readonly stepOffsetBytes: number;
  /** Codes: component-major for fp8, else token after token, `tokenBytes` each. */
  readonly codeOffsetBytes: number;
  readonly tokenBytes: number;
}

/** Bytes of one token's codes of one group, zero-padded to a byte. */
function groupTokenBytes(size: number, type: GroupType): number {
  return Math.ceil((size * CODE_BITS[type]) / 8);
}

/** Packed bytes of one token; a chunk is exactly `tokenCount` times that. */
export function tokenPackedBytes(plan: PaperPlan): number {
  let bytes = 0;
  for (const { size, type } of plan.groups) bytes += groupTokenBytes(size, type) + (type === 'fp8' ? 0 : 4);
  return bytes;
}

/**
 * Places of all groups, in plan order, of a chunk of `tokenCount` tokens: planes of (min, step) of the integer groups
 * in plan order, then fp8 codes, then int4 codes, then int2 codes.
 */
export function placeGroups(plan: PaperPlan, tokenCount: number): GroupPlace[] {
  let planeBytes = 0;
  const codeBytes: Record<GroupType, number> = { fp8: 0, int4: 0, int2: 0 };
  for (const { size, type } of plan.groups) {
    codeBytes[type] += groupTokenBytes(size, type) * tokenCount;
    if (type !== 'fp8') planeBytes += 4 * tokenCount;
  }
  const next: Record<GroupType, number> = {
    fp8: planeBytes,
    int4: planeBytes + codeBytes.fp8,
    int2: planeBytes + codeBytes.fp8 + codeBytes.int4,
  };
  let plane = 0;
  return plan.groups.map(({ start, size, type, exponent }) => {
    const tokenBytes = groupTokenBytes(size, type);
    const codeOffsetBytes = next[type];
    next[type] += tokenBytes * tokenCount;
    const minOffsetBytes = type === 'fp8' ? 0 : plane;
    const stepOffsetBytes = type === 'fp8' ? 0 : plane + 2 * tokenCount;
    if (type !== 'fp8') plane += 4 * tokenCount;
    return { start, size, type, exponent, minOffsetBytes, stepOffsetBytes, codeOffsetBytes, tokenBytes };
  });
}
