// How a chunk's data are laid into a kernel's memory: classes, expected magnitudes and what the caller adds.
// Does not know what kernels do with them.

import { TOKEN_CLASSES, TOKEN_CLASS_MIN } from './classes.ts';
import { CHUNK } from './kernel/layout.ts';
import type { WtcPlan } from './plan.ts';

/** Places in a kernel's memory, addresses in bytes. */
export interface ChunkRoom {
  readonly pairClasses: number;
  readonly runEnds: number;
  readonly componentClasses: number;
  /** Expected magnitudes of token class c begin at expected + (c − TOKEN_CLASS_MIN) · expectedBytes. */
  readonly expected: number;
  readonly expectedBytes: number;
  /** What the caller asked for, each at a multiple of 16. */
  readonly parts: readonly number[];
  /** Bytes needed from CHUNK on. */
  readonly roomBytes: number;
}

/** Lays out a chunk of this plan with further parts of `partBytes`. */
export function planRoom(plan: WtcPlan, partBytes: readonly number[]): ChunkRoom {
  let at = CHUNK;
  const place = (byteLength: number): number => {
    const here = at;
    at += Math.ceil(byteLength / 16) * 16;
    return here;
  };
  const pairClasses = place(plan.rank);
  const runEnds = place(2 * plan.rank);
  const componentClasses = place(2 * plan.rank);
  const expectedBytes = 4 * (Math.ceil(plan.rank / 32) + 1);
  const expected = place(expectedBytes * TOKEN_CLASSES);
  const parts = partBytes.map(place);
  return { pairClasses, runEnds, componentClasses, expected, expectedBytes, parts, roomBytes: at - CHUNK };
}

/** Writes what the plan brings: classes, and expected magnitudes of the token classes that occur. */
export function fillRoom(memory: Uint8Array, room: ChunkRoom, plan: WtcPlan): void {
  new Int16Array(memory.buffer, room.pairClasses, plan.rank / 2).set(plan.pairClasses);
  new Int16Array(memory.buffer, room.componentClasses, plan.rank).set(plan.componentClasses);
  new Int32Array(memory.buffer, room.runEnds, plan.rank / 2).set(plan.runEnds);
}

/** Address of a token class's expected magnitudes, which are written on its first use in a chunk (`written`). */
export function placeExpected(
  memory: Uint8Array,
  room: ChunkRoom,
  plan: WtcPlan,
  tokenClass: number,
  written: Set<number>,
): number {
  const at = room.expected + (tokenClass - TOKEN_CLASS_MIN) * room.expectedBytes;
  if (!written.has(tokenClass)) {
    const expected = plan.expectedMagnitudes(tokenClass);
    new Int32Array(memory.buffer, at, expected.length).set(expected);
    written.add(tokenClass);
  }
  return at;
}
