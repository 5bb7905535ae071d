// Encodes one chunk of a stream: coefficients → lanes of rANS words, the reverse of decode.ts. A lane's steps are coded
// from last to first, as rANS demands; words are written from the end of a scratch buffer backwards.

import { closeLane, createEncoderTables, fillEncoder, openLane, writeSteps } from '../entropy/rans.ts';
import { TOKEN_CLASSES, TOKEN_CLASS_MIN, tokenStep } from './classes.ts';
import { laneTokens, tokenClassFrequencies, tokenClassWeights, writeFrame } from './frame.ts';
import type { WtcPlan } from './plan.ts';
import { STEPS_PER_PAIR, createTokenSteps, symboliseToken } from './symbolise.ts';

/** Chunk bytes of `coefficients` f32[tokenCount, plan.rank], finite, and their token classes, in `lanes` lanes. */
export function encodeLanes(
  coefficients: Float32Array,
  tokenCount: number,
  tokenClasses: Int8Array,
  lanes: number,
  plan: WtcPlan,
): Uint8Array {
  const weights = tokenClassWeights(tokenClasses);
  const tokenClassTable = createEncoderTables(TOKEN_CLASSES);
  fillEncoder(tokenClassFrequencies(weights) ?? [], tokenClassTable, 0);
  const token = createTokenSteps(plan.rank);
  // No step takes more than a word, a token's class one more, the state two.
  const longest = Math.ceil(tokenCount / lanes);
  const scratch = new Uint16Array(longest * ((plan.rank / 2) * STEPS_PER_PAIR + 1) + 2);
  const laneWords: Uint16Array[] = [];
  const classStep = new Int32Array(1);
  for (let l = 0; l < lanes; l++) {
    const writer = openLane(scratch);
    const first = laneTokens(tokenCount, lanes, l);
    for (let t = laneTokens(tokenCount, lanes, l + 1) - 1; t >= first; t--) {
      const tokenClass = tokenClasses[t]!;
      symboliseToken(coefficients, t * plan.rank, tokenClass, tokenStep(plan.stepIndex, tokenClass), plan, token);
      writeSteps(writer, token.steps, token.stepCount, plan.tables.encoder);
      classStep[0] = tokenClass - TOKEN_CLASS_MIN;
      writeSteps(writer, classStep, 1, tokenClassTable);
    }
    laneWords.push(closeLane(writer));
  }
  return writeFrame(weights, laneWords);
}
