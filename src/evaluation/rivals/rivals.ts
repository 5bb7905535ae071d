// Rival codecs by name, at the operating points that evidence.md 1.4 compares. Does not know: how any of them works.

import { KvtcError } from '../../base/errors.ts';
import { STREAMS, headDim, streamWidth } from '../../base/geometry.ts';
import type { Transforms } from '../../cache/transforms.ts';
import type { ContextOptions, LlamaModel } from '../../engines/llama/session.ts';
import type { Treatment } from '../treatment.ts';
import { nativeTreatments } from './native.ts';
import { perHeadPcaTreatment } from './per-head-pca.ts';
import { evictionTreatment, rowRivals, truncationTreatment } from './treatments.ts';

/**
 * `rows`: quantisers on rows, per-head PCA, PCA truncation and recency eviction, from the exact cache of the prefix.
 * `native`: the engine's own cache types, which run the prefix themselves; `native-plain`: the same without the rotation
 * that the engine puts before its quantisers.
 */
export const RIVAL_SETS = ['rows', 'native', 'native-plain'] as const;
export type RivalSet = (typeof RIVAL_SETS)[number];

/** Ratios of the rivals that have one to choose. */
const PCA_RATIOS = [6, 9, 16];
const TRUNCATION_RATIOS = [16, 32];
const EVICTION_RATIOS = [8, 16];

export interface RivalWorld {
  readonly transforms: Transforms;
  readonly model: LlamaModel;
  /** Options of the context that the exact cache runs in. */
  readonly context: ContextOptions;
  readonly sinks: number;
  readonly window: number;
}

/** Treatments of the sets. Throws KVTC_MODEL_UNSUPPORTED where blocks of 32 do not divide the model's heads. */
export function rivalTreatments(sets: readonly RivalSet[], world: RivalWorld): Treatment[] {
  return [...new Set(sets)].flatMap((set) => {
    if (set !== 'rows') return nativeTreatments({ ...world, rotated: set === 'native' });
    return rowTreatments(world);
  });
}

function rowTreatments({ transforms, sinks, window }: RivalWorld): Treatment[] {
  const { geometry } = transforms.profile.model;
  const odd = STREAMS.find((stream) => (geometry.kvHeads * headDim(geometry, stream)) % 32 !== 0);
  if (odd !== undefined) {
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', `${odd} rows do not divide into the rivals' blocks of 32`);
  }
  const { rank } = transforms.profile;
  // Truncation keeps p ÷ ratio components; a profile of low rank has not that many at low ratios.
  const truncated = TRUNCATION_RATIOS.filter((ratio) =>
    STREAMS.every((stream) => streamWidth(geometry, stream) / ratio <= rank[stream]),
  );
  return [
    ...rowRivals(geometry),
    ...PCA_RATIOS.map((ratio) => perHeadPcaTreatment(transforms, { ratio, sinks, window })),
    ...truncated.map((ratio) => truncationTreatment(transforms, { ratio, sinks, window })),
    ...EVICTION_RATIOS.map((ratio) => evictionTreatment(geometry, ratio)),
  ];
}
