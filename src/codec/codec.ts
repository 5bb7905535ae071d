// The codec seam: coefficients of a chunk of tokens ⇄ bytes. A codec is a quantiser with its packing; the entropy stage
// (entropy/) frames its output, the transform (linalg) feeds it, the container stores what comes out without looking.
// Does not know: engines, files, RoPE.

/** A codec's plan is opaque to every other room; `rank` and `id` are all they may read. */
export interface CodecPlan {
  /** Coefficients per token the plan uses; a multiple of 16. */
  readonly rank: number;
}

export interface Codec<Plan extends CodecPlan> {
  /** Stable name written into containers, such as `kvtc-paper`. */
  readonly id: string;
  /** Exact length of a chunk before the entropy stage. */
  packedBytes(tokenCount: number, plan: Plan): number;
  /** `coefficients` f32[tokenCount, plan.rank] → packed chunk. Throws KVTC_ROWS_NOT_FINITE on NaN or ±Inf. */
  encodeChunk(coefficients: Float32Array, tokenCount: number, plan: Plan): Uint8Array;
  /** Fills `out` f32[tokenCount, plan.rank]. Throws KVTC_CHUNK_MALFORMED when the length or a value cannot be. */
  decodeChunk(packed: Uint8Array, tokenCount: number, plan: Plan, out: Float32Array): void;
}
