// What coding a cache asks of a codec: coefficients of a range of tokens → stored chunks, and back.
// Does not know: engine rows, transforms, files, any particular codec.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import type { SequenceMeans } from '../calibration/token-means.ts';
import type { EntropyMethod } from '../codec/entropy/blocks.ts';
import type { ChunkEntry, JsonObject } from '../container/types.ts';
import type { Profile } from '../profile/profile.ts';
import type { FloatPool } from '../base/float-pool.ts';

/** What the newest tokens get: kept as found, or coded at a finer step. */
export type WindowMode = 'exact' | 'finer';

/** What the oldest tokens get: kept as found, or the first alone, and the others coded at the finest step. */
export type SinkMode = 'exact' | 'finer';

/** What tokens at either end get; each codec has its defaults. */
export interface EndModes {
  readonly sinkMode?: SinkMode | undefined;
  readonly windowMode?: WindowMode | undefined;
}

/** What a codec may be told; each refuses what it does not have. */
export interface CodingOptions extends EndModes {
  /** Default 16. */
  readonly ratio?: number | undefined;
  readonly keyRatio?: number | undefined;
  readonly valueRatio?: number | undefined;
  readonly step?: number | undefined;
  readonly sinks: number;
  readonly window: number;
  readonly entropy?: EntropyMethod | undefined;
  readonly entropyLevel?: number | undefined;
  /** What the sequence's token ids tell: taken out before coefficients are coded. */
  readonly means?: SequenceMeans | null | undefined;
}

export interface StoredChunk {
  readonly packedBytes: number;
  readonly stored: Uint8Array;
}

export interface ChunkEncoder {
  readonly codec: string;
  readonly parameters: JsonObject;
  readonly entropy: EntropyMethod;
  /** Oldest tokens that must stay exact. */
  readonly exactSinks: number;
  /** Newest tokens that must stay exact. */
  readonly exactWindow: number;
  /** Components that `encode` wants of a range of a sequence of `tokenCount` tokens. */
  ranks(range: TokenRange, tokenCount: number): Readonly<Record<StreamKind, number>>;
  /**
   * Both streams' chunks of a range; coefficients f32[tokens of the range, rank], which this may change. Throws
   * KVTC_ROWS_NOT_FINITE.
   */
  encode(
    coefficients: Readonly<Record<StreamKind, Float32Array>>,
    range: TokenRange,
    tokenCount: number,
  ): Promise<Readonly<Record<StreamKind, StoredChunk>>>;
}

/** Neighbouring chunks of one stream, first to last: tokens [startToken, endToken). At least one. */
export interface ChunkGroup extends TokenRange {
  readonly stream: StreamKind;
  readonly chunks: readonly ChunkEntry[];
}

export interface DecodedChunks {
  /** f32[tokens, rank]; defined as far as products read them, see Coefficients. */
  readonly coefficients: Float32Array;
  readonly rank: number;
  /** i32[tokens]: how many of a token's come before nothing but zeros. Absent: all. */
  readonly leading?: Int32Array | undefined;
}

export interface ChunkDecoder {
  /**
   * `stored`: the bytes of each of the group's chunks. The coefficients' buffer is taken from `pool`; who has used them gives
   * it back. Throws KVTC_CHUNK_MALFORMED.
   */
  decode(stored: readonly Uint8Array[], group: ChunkGroup, pool: FloatPool): Promise<DecodedChunks>;
}

/** The ratio where none is given: the paper's middle one. */
export const DEFAULT_RATIO = 16;

/** Throws KVTC_PROFILE_MISMATCH when a header claims more components than the profile holds. */
export function checkRank(stream: StreamKind, rank: number, profile: Profile): void {
  if (rank <= profile.rank[stream]) return;
  throw new KvtcError(
    'KVTC_PROFILE_MISMATCH',
    `the container's ${stream} plan has rank ${rank}, the profile's basis ${profile.rank[stream]}`,
    { stream, gotRank: profile.rank[stream], expectedRank: rank },
  );
}
