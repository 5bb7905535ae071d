// Chooses the codec: a profile and settings give what codes chunks, a container's header and its profile what decodes them.
// Does not know: engine rows, transforms, files, how any codec works.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import type { SequenceMeans } from '../calibration/token-means.ts';
import { paperCodec } from '../codec/paper/paper-codec.ts';
import { WTC_CODEC_ID } from '../codec/wtc/wtc-codec.ts';
import type { ContainerHeader } from '../container/types.ts';
import type { Profile } from '../profile/profile.ts';
import type { ChunkDecoder, ChunkEncoder, CodingOptions } from './chunk-seam.ts';
import { createPaperDecoder, createPaperEncoder } from './paper-chunks.ts';
import {
  MEASURED_RATIOS,
  USUAL_RATIOS,
  createWtcDecoder,
  createWtcEncoder,
  servedRatios,
  stepAtRatio,
} from './wtc-chunks.ts';

/**
 * The encoder of a profile's codec. Throws KVTC_PLAN_MISSING for a ratio the profile does not serve, KVTC_OPTION_INVALID
 * for settings its codec does not have.
 */
export function createChunkEncoder(profile: Profile, options: CodingOptions): ChunkEncoder {
  return profile.codec === 'wtc' ? createWtcEncoder(profile, options) : createPaperEncoder(profile, options);
}

/**
 * The decoder for a container's chunks; `means`: what its token ids tell, put back after decoding. Throws
 * KVTC_CODEC_UNKNOWN, KVTC_PROFILE_MISMATCH when the profile is of another codec or its rank too low,
 * KVTC_CONTAINER_MALFORMED for parameters that cannot be.
 */
export function createChunkDecoder(
  header: ContainerHeader,
  profile: Profile,
  means: SequenceMeans | null = null,
): ChunkDecoder {
  checkCodec(header);
  if (header.codec !== profile.codec) {
    throw new KvtcError(
      'KVTC_PROFILE_MISMATCH',
      `the container was written with codec ${header.codec}, the profile is for ${profile.codec}`,
      { got: profile.codec, expected: header.codec },
    );
  }
  return profile.codec === 'wtc' ? createWtcDecoder(header, profile, means) : createPaperDecoder(header, profile);
}

/** Throws KVTC_CODEC_UNKNOWN for a container of a codec that this build does not have. */
export function checkCodec({ codec }: ContainerHeader): void {
  if (codec === paperCodec.id || codec === WTC_CODEC_ID) return;
  const known = `${paperCodec.id} and ${WTC_CODEC_ID}`;
  throw new KvtcError(
    'KVTC_CODEC_UNKNOWN',
    `the container was written with codec ${codec}; this build decodes ${known}`,
    { got: codec, expected: known },
  );
}

/**
 * Ranks that a cache coded so takes: of most of its tokens and of its newest. For preparing transforms and counting their
 * work. Throws as createChunkEncoder.
 */
export function ranksInUse(
  profile: Profile,
  options: Partial<CodingOptions>,
): readonly [Readonly<Record<StreamKind, number>>, Readonly<Record<StreamKind, number>>] {
  const tokenCount = Number.MAX_SAFE_INTEGER;
  const middle = 2 ** 52;
  const encoder = createChunkEncoder(profile, { sinks: 0, window: 0, ...options });
  return [
    encoder.ranks({ startToken: middle, endToken: middle + 1 }, tokenCount),
    encoder.ranks({ startToken: tokenCount - 1, endToken: tokenCount }, tokenCount),
  ];
}

/** Ratios to show a profile at, ascending: those it has plans for, or usual ones that its steps reach. */
export function plannedRatios(profile: Profile): number[] {
  if (profile.codec === 'wtc') return servedRatios(profile, USUAL_RATIOS);
  return profile.plans.map((plan) => plan.ratio).toSorted((a, b) => a - b);
}

/** Ratios to measure a profile at, ascending: those it has plans for, or a ladder within its steps, close enough to read between. */
export function ratiosToMeasure(profile: Profile): number[] {
  return profile.codec === 'wtc' ? servedRatios(profile, MEASURED_RATIOS) : plannedRatios(profile);
}

/** The step of keys that a profile codes a ratio with; null where its codec has plans. Throws KVTC_PLAN_MISSING. */
export function stepOfRatio(profile: Profile, ratio: number): number | null {
  return profile.codec === 'wtc' ? stepAtRatio(profile, ratio) : null;
}
