// How fast the entropy stage of codec wtc is by itself, on one thread: a container's own chunks, decoded and coded again.
// Does not know: transforms, engines, what the speed is compared with.

import { codedPairs } from '../codec/wtc/classes.ts';
import { createWtcPlan, parseWtcParameters } from '../codec/wtc/plan.ts';
import { decodeWtcChunk, encodeWtcChunk } from '../codec/wtc/wtc-codec.ts';
import type { Container } from '../container/types.ts';
import type { WtcProfile } from '../profile/profile.ts';

export interface EntropyTimes {
  /** Coefficients that the chunks code, zeros among them. */
  readonly symbols: number;
  /** Of all chunks, run by run. */
  readonly decodeMs: readonly number[];
  readonly encodeMs: readonly number[];
}

/**
 * Decodes all chunks `runs` times and codes what they decode to as often; one further run of each warms the compiler.
 * Memory: all coefficients as f32. Throws KVTC_CONTAINER_MALFORMED, KVTC_CHUNK_MALFORMED, and what reading the container
 * throws.
 */
export async function timeEntropy(container: Container, profile: WtcProfile, runs: number): Promise<EntropyTimes> {
  const parameters = parseWtcParameters(container.header.codecParameters);
  const plans = {
    key: createWtcPlan(parameters.key, profile.tables.key),
    value: createWtcPlan(parameters.value, profile.tables.value),
  };
  const chunks = await Promise.all(
    container.chunks.map(async (chunk) => {
      const plan = plans[chunk.stream];
      const stored = await container.readChunk(chunk);
      const tokens = chunk.endToken - chunk.startToken;
      const coefficients = new Float32Array(tokens * plan.rank);
      const classes = decodeWtcChunk(stored, tokens, plan, coefficients);
      encodeWtcChunk(coefficients, tokens, classes, plan);
      return { stored, tokens, plan, coefficients, classes };
    }),
  );
  const symbols = chunks.reduce(
    (sum, { plan, classes }) =>
      classes.reduce((own, tokenClass) => own + 2 * codedPairs(plan.pairClasses, tokenClass, plan.cut), sum),
    0,
  );
  const time = (work: () => void): number[] =>
    Array.from({ length: runs }, () => {
      const startedMs = performance.now();
      work();
      return performance.now() - startedMs;
    });
  return {
    symbols,
    decodeMs: time(() => {
      for (const { stored, tokens, plan, coefficients } of chunks) decodeWtcChunk(stored, tokens, plan, coefficients);
    }),
    encodeMs: time(() => {
      for (const { tokens, plan, coefficients, classes } of chunks) encodeWtcChunk(coefficients, tokens, classes, plan);
    }),
  };
}
