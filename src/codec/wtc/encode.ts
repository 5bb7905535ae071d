// Encodes one chunk of a stream: coefficients → lanes of rANS words, the reverse of decode.ts. A lane's steps are coded
// from last to first, as rANS demands; words are written from the end of their room backwards. The loops are the kernel's.

import { KvtcError } from '../../base/errors.ts';
import { LOWER_BOUND, fillEncoder } from '../entropy/rans.ts';
import { TOKEN_CLASS_MIN, codedPairs, tokenStep } from './classes.ts';
import { fillRoom, placeExpected, planRoom } from './chunk-room.ts';
import { laneTokens, tokenClassFrequencies, tokenClassWeights, writeFrame } from './frame.ts';
import { kernelOf } from './kernel/kernel.ts';
import { CLASS_ENCODER, ENCODER, LANE, LANES } from './kernel/layout.ts';
import type { WtcPlan } from './plan.ts';
import { DECISION_UNITS, STEPS_PER_PAIR } from './symbolise.ts';

/**
 * Chunk bytes of `coefficients` f32[tokenCount, ownRank], zeros from there to the plan's rank, and their token classes, in
 * `lanes` lanes.
 * Throws KVTC_ROWS_NOT_FINITE.
 */
export function encodeLanes(
  coefficients: Float32Array,
  tokenCount: number,
  tokenClasses: Int8Array,
  lanes: number,
  plan: WtcPlan,
  ownRank: number,
): Uint8Array {
  const { rank } = plan;
  const kernel = kernelOf(plan.family);
  // No step takes more than a word; a token has its class before its pairs, a lane its state of two words before all.
  const stepsPerToken = (rank / 2) * STEPS_PER_PAIR + 1;
  const laneRoomBytes = 2 * (Math.ceil(tokenCount / lanes) * stepsPerToken + 2);
  const room = planRoom(plan, [4 * lanesLongest(tokenCount, lanes) * rank, 4 * stepsPerToken, laneRoomBytes]);
  const [rowsAt, stepsAt, laneRoomAt] = room.parts as [number, number, number];
  const memory = kernel.reserve(room.roomBytes);
  fillRoom(memory, room, plan);
  const view = new DataView(memory.buffer);
  const weights = tokenClassWeights(tokenClasses);
  fillEncoder(tokenClassFrequencies(weights) ?? [], view, CLASS_ENCODER);
  const rows = new Float32Array(memory.buffer, rowsAt, lanesLongest(tokenCount, lanes) * rank);
  if (ownRank < rank) rows.fill(0);
  const written = new Set<number>();
  const laneWords: Uint8Array[] = [];
  const end = laneRoomAt + laneRoomBytes;
  for (let l = 0; l < lanes; l++) {
    const first = laneTokens(tokenCount, lanes, l);
    const last = laneTokens(tokenCount, lanes, l + 1) - 1;
    if (ownRank === rank) rows.set(coefficients.subarray(first * rank, (last + 1) * rank));
    else {
      for (let t = first; t <= last; t++) {
        rows.set(coefficients.subarray(t * ownRank, (t + 1) * ownRank), (t - first) * rank);
      }
    }
    if (kernel.run.finite(rowsAt, rowsAt + 4 * (last + 1 - first) * rank) === 0) refuse(coefficients, ownRank);
    view.setInt32(LANES + LANE.state, LOWER_BOUND, true);
    view.setInt32(LANES + LANE.position, end, true);
    for (let t = last; t >= first; t--) {
      const tokenClass = tokenClasses[t]!;
      const stepsEnd = kernel.run.symbolise(
        rowsAt + 4 * (t - first) * rank,
        codedPairs(plan.pairClasses, tokenClass, plan.cut),
        DECISION_UNITS / tokenStep(plan.stepIndex, tokenClass),
        2 * tokenClass,
        placeExpected(memory, room, plan, tokenClass, written),
        room.pairClasses,
        room.runEnds,
        room.componentClasses,
        stepsAt,
      );
      kernel.run.write(LANES, stepsAt, stepsEnd, ENCODER);
      view.setInt32(stepsAt, tokenClass - TOKEN_CLASS_MIN, true);
      kernel.run.write(LANES, stepsAt, stepsAt + 4, CLASS_ENCODER);
    }
    const state = view.getInt32(LANES + LANE.state, true);
    const at = view.getInt32(LANES + LANE.position, true) - 4;
    view.setUint16(at, state >>> 16, true);
    view.setUint16(at + 2, state & 0xffff, true);
    laneWords.push(memory.slice(at, end));
  }
  return writeFrame(weights, laneWords);
}

/** Tokens of the longest lane. */
function lanesLongest(tokenCount: number, lanes: number): number {
  return Math.ceil(tokenCount / lanes);
}

function refuse(coefficients: Float32Array, rank: number): never {
  const index = coefficients.findIndex((value) => !Number.isFinite(value));
  const token = Math.floor(index / rank);
  throw new KvtcError(
    'KVTC_ROWS_NOT_FINITE',
    `coefficient ${index % rank} of the chunk's token ${token} is ${coefficients[index]}; rows must be finite`,
    { token, component: index % rank },
  );
}
