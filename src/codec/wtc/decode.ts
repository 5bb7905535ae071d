// Decodes one chunk of a stream: lanes of rANS words → coefficients (docs/format/wtc-codec.md, docs/format/entropy.md).
// All lanes walk together, pair by pair, so that one lane's long dependency chain overlaps the others'; the walk itself is
// the kernel's. Everything it reads and writes is bounded by the plan; wrong bytes end in KVTC_CHUNK_MALFORMED.

import { KvtcError } from '../../base/errors.ts';
import { LOWER_BOUND, PROBABILITY_SCALE, checkLaneEnd } from '../entropy/rans.ts';
import { TOKEN_CLASS_MIN, codedPairs, tokenStep } from './classes.ts';
import type { ChunkRoom } from './chunk-room.ts';
import { fillRoom, placeExpected, planRoom } from './chunk-room.ts';
import type { ChunkFrame } from './frame.ts';
import { laneTokens } from './frame.ts';
import { kernelOf } from './kernel/kernel.ts';
import { LANE, LANES, LANE_BYTES } from './kernel/layout.ts';
import type { WtcPlan } from './plan.ts';

/** More bytes than one token can read: a pair takes at most 11 steps of one word, the token's class one more. */
const WORD_BYTES_PER_COMPONENT = 12;

/**
 * Fills the coded part of every row of `out` f32[tokenCount, plan.rank], and `tokenClasses` i8[tokenCount], from a parsed
 * frame. Integers are the same on every machine; a coefficient is the f32 product of two f32 numbers. Throws
 * KVTC_CHUNK_MALFORMED.
 */
export function decodeLanes(
  frame: ChunkFrame,
  tokenCount: number,
  plan: WtcPlan,
  out: Float32Array,
  tokenClasses: Int8Array,
): void {
  const { words, laneStarts, lanes } = frame;
  const { rank } = plan;
  const kernel = kernelOf(plan.family);
  const slackBytes = WORD_BYTES_PER_COMPONENT * rank + 16;
  const room = planRoom(plan, [words.length + slackBytes, 4 * lanes * rank]);
  const [wordsAt, rowsAt] = room.parts as [number, number];
  const memory = kernel.reserve(room.roomBytes);
  fillRoom(memory, room, plan);
  memory.set(words, wordsAt);
  // A row of every lane: what a turn fills is in the nearest caches when it is taken out.
  const rows = new Float32Array(memory.buffer, rowsAt, lanes * rank);
  const walked = lanes + (lanes % 2);
  const records = new DataView(memory.buffer, LANES, walked * LANE_BYTES);
  // Lanes walk two at a time: an odd one's companion has no pairs.
  records.setInt32((walked - 1) * LANE_BYTES + LANE.pairCount, 0, true);
  for (let l = 0; l < lanes; l++) startLane(records, l, wordsAt + 2 * laneStarts[l]!, memory);
  const longest = Math.ceil(tokenCount / lanes);
  const laneEnd = LANES + walked * LANE_BYTES;
  const written = new Set<number>();
  for (let turn = 0; turn < longest; turn++) {
    let pairs = 0;
    for (let l = 0; l < lanes; l++) {
      const at = l * LANE_BYTES;
      // A lane that has run past its end only ever reads what follows; it is told here, before it can leave the memory.
      if (records.getInt32(at + LANE.position, true) > wordsAt + 2 * laneStarts[l + 1]!) {
        checkLane(records, l, laneStarts, wordsAt);
      }
      records.setInt32(at + LANE.pairCount, 0, true);
      const token = laneTokens(tokenCount, lanes, l) + turn;
      if (token >= laneTokens(tokenCount, lanes, l + 1)) continue;
      const tokenClass = decodeTokenClass(records, at, memory, frame.tokenClassSlots);
      tokenClasses[token] = tokenClass;
      const count = codedPairs(plan.pairClasses, tokenClass, plan.cut);
      startToken(records, at, memory, room, plan, { tokenClass, count, row: rowsAt + 4 * l * rank, written });
      pairs = Math.max(pairs, count);
    }
    kernel.run.decode(pairs, laneEnd, room.pairClasses, room.runEnds, room.componentClasses);
    for (let l = 0; l < lanes; l++) {
      const token = laneTokens(tokenCount, lanes, l) + turn;
      if (token >= laneTokens(tokenCount, lanes, l + 1)) continue;
      const coded = 2 * records.getInt32(l * LANE_BYTES + LANE.pairCount, true);
      out.set(rows.subarray(l * rank, l * rank + coded), token * rank);
    }
  }
  for (let l = 0; l < lanes; l++) checkLane(records, l, laneStarts, wordsAt);
}

function startLane(records: DataView, l: number, wordsAt: number, memory: Uint8Array): void {
  const state = (wordAt(memory, wordsAt) << 16) | wordAt(memory, wordsAt + 2);
  if (state < LOWER_BOUND) {
    throw new KvtcError('KVTC_CHUNK_MALFORMED', `lane ${l} of a wtc chunk begins in state ${state}`, {
      lane: l,
      state,
    });
  }
  records.setInt32(l * LANE_BYTES + LANE.state, state, true);
  records.setInt32(l * LANE_BYTES + LANE.position, wordsAt + 4, true);
}

function startToken(
  records: DataView,
  at: number,
  memory: Uint8Array,
  room: ChunkRoom,
  plan: WtcPlan,
  token: {
    readonly tokenClass: number;
    readonly count: number;
    readonly row: number;
    readonly written: Set<number>;
  },
): void {
  const { tokenClass, count, row, written } = token;
  records.setInt32(at + LANE.pairCount, count, true);
  records.setInt32(at + LANE.tokenShift, 2 * tokenClass, true);
  records.setInt32(at + LANE.shift, 2 * tokenClass, true);
  records.setFloat32(at + LANE.step, tokenStep(plan.stepIndex, tokenClass), true);
  records.setInt32(at + LANE.observed, 0, true);
  records.setInt32(at + LANE.expected, placeExpected(memory, room, plan, tokenClass, written), true);
  records.setInt32(at + LANE.row, row, true);
}

function decodeTokenClass(records: DataView, at: number, memory: Uint8Array, slots: Int32Array): number {
  const state = records.getInt32(at + LANE.state, true);
  const slot = slots[state & (PROBABILITY_SCALE - 1)]!;
  let x = Math.imul((slot >>> 12) & 8191, state >>> 12) + (slot & (PROBABILITY_SCALE - 1));
  if (x < LOWER_BOUND) {
    const position = records.getInt32(at + LANE.position, true);
    x = (x << 16) | wordAt(memory, position);
    records.setInt32(at + LANE.position, position + 2, true);
  }
  records.setInt32(at + LANE.state, x, true);
  return (slot >>> 25) + TOKEN_CLASS_MIN;
}

function checkLane(records: DataView, l: number, laneStarts: Int32Array, wordsAt: number): void {
  const wordsRead = (records.getInt32(l * LANE_BYTES + LANE.position, true) - wordsAt) / 2 - laneStarts[l]!;
  const wordCount = laneStarts[l + 1]! - laneStarts[l]!;
  checkLaneEnd(l, records.getInt32(l * LANE_BYTES + LANE.state, true), wordsRead, wordCount);
}

function wordAt(memory: Uint8Array, at: number): number {
  return memory[at]! | (memory[at + 1]! << 8);
}
