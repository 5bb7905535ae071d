// What a model does to its keys' positions, as plain data. Built by the engine room from model metadata,
// stored in profiles, executed by rope/rotate.ts and by the numeric backends. Knows no engine and no file format.

/** Which two values of a head form a rotated pair: (2i, 2i+1), or (i, i + dims/2). */
export type RopePairing = 'interleaved' | 'half-split';

/**
 * Parameters of ggml's rope (f32 chain: theta starts at f32(position) and is multiplied by f32 theta_scale per pair).
 * Linear scaling is `frequencyScale` = 1/factor. YaRN is `extFactor` > 0. Llama-3 scaling is `frequencyFactors`.
 */
export interface RopeDescription {
  readonly pairing: RopePairing;
  /** Rotated values per head; the rest of a head, if any, passes through. Even, ≤ headDim. */
  readonly dims: number;
  readonly frequencyBase: number;
  readonly frequencyScale: number;
  /** YaRN mix of interpolation and extrapolation; 0 turns it off. */
  readonly extFactor: number;
  /** Factor on cos and sin before YaRN's own mscale; the inverse divides by it. */
  readonly attnFactor: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly originalContext: number;
  /** f32[dims/2], each pair's angle is divided by it; null when the model has none. */
  readonly frequencyFactors: readonly number[] | null;
}
