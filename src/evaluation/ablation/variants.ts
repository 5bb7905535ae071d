// Which settings an ablation compares, as treatments of one cache. Does not know: documents, engines, results.

import { KvtcError } from '../../base/errors.ts';
import { STREAMS, streamWidth } from '../../base/geometry.ts';
import { plannedRatios } from '../../cache/chunk-coder.ts';
import type { Transforms } from '../../cache/transforms.ts';
import { truncationTreatment } from '../rivals/treatments.ts';
import type { KvtcSettings, Treatment } from '../treatment.ts';
import { kvtcTreatment } from '../treatment.ts';
import type { PlanRules } from './replan.ts';

/** Settings of coding alone: nothing is learned anew. */
export const CODING_SETS = ['sinks', 'window', 'plan', 'split', 'chunk', 'entropy'] as const;
/** New plans from rows of calibration texts. */
export const PLANNING_SETS = ['groups', 'fp8'] as const;
/** New profiles, a calibration each. */
export const LEARNING_SETS = ['layers', 'tokens', 'domain', 'seed'] as const;
export const ABLATION_SETS = [...CODING_SETS, ...PLANNING_SETS, ...LEARNING_SETS] as const;
export type AblationSet = (typeof ABLATION_SETS)[number];

/** One setting of one set. */
export interface Variant {
  readonly set: AblationSet;
  readonly value: string | number;
  /** Target ratio; that of keys and values where they differ is in `value`. */
  readonly ratio: number;
  readonly treatment: Treatment;
}

const SINKS = [0, 1, 4];
const WINDOWS = [0, 16, 64, 128, 256];
const CHUNKS = [16, 64, 256, 1024];
const ENTROPY: readonly (readonly [name: string, settings: KvtcSettings])[] = [
  ['none', { entropy: 'none' }],
  ['DEFLATE, Huffman only', { entropy: 'deflate', entropyLevel: 0 }],
  ['DEFLATE 1', { entropy: 'deflate', entropyLevel: 1 }],
  ['DEFLATE 6', { entropy: 'deflate', entropyLevel: 6 }],
  ['DEFLATE 9', { entropy: 'deflate', entropyLevel: 9 }],
  ['zstd 3', { entropy: 'zstd', entropyLevel: 3 }],
  ['zstd 19', { entropy: 'zstd', entropyLevel: 19 }],
];

/** Plans of the planning sets, by the value they are shown as. */
export const PLAN_RULES: Readonly<Record<(typeof PLANNING_SETS)[number], readonly (readonly [string, PlanRules])[]>> = {
  groups: [
    ['1, 16, 64, 256, 1024', {}],
    ['16, 64, 256, 1024', { sizes: [16, 64, 256, 1024] }],
    ['16', { sizes: [16] }],
    ['64', { sizes: [64] }],
    ['256', { sizes: [256] }],
  ],
  fp8: [
    ['without metadata', {}],
    ['with metadata', { fp8Metadata: true }],
    ['no fp8', { types: ['int2', 'int4'] }],
  ],
};

/**
 * Variants of a coding set at one ratio, the defaults among them. Throws KVTC_OPTION_INVALID where the profile has no
 * plans to split a ratio with.
 */
export function codingVariants(
  set: (typeof CODING_SETS)[number],
  transforms: Transforms,
  ratio: number,
  prefixTokens: number,
): Variant[] {
  const kvtc = (value: string | number, settings: KvtcSettings): Variant => ({
    set,
    value,
    ratio,
    treatment: kvtcTreatment(transforms, { ratio, ...settings }),
  });
  switch (set) {
    case 'sinks':
      return SINKS.map((sinks) => kvtc(sinks, { sinks }));
    case 'window':
      return WINDOWS.filter((window) => window < prefixTokens).map((window) => kvtc(window, { window }));
    case 'chunk':
      return [
        ...CHUNKS.filter((chunk) => chunk < prefixTokens).map((chunkTokens) => kvtc(chunkTokens, { chunkTokens })),
        kvtc('whole', { chunkTokens: prefixTokens }),
      ];
    case 'entropy':
      return ENTROPY.map(([name, settings]) => kvtc(name, settings));
    case 'split':
      return splitVariants(transforms, ratio, kvtc);
    case 'plan':
      return [kvtc('bit plan', {}), ...truncated(transforms, ratio)];
  }
}

/** Keys finer than values, the same, and coarser: by plans that the profile has. */
function splitVariants(
  { profile }: Transforms,
  ratio: number,
  kvtc: (value: string, settings: KvtcSettings) => Variant,
): Variant[] {
  const planned = plannedRatios(profile);
  const pairs = [0.5, 1, 2].map((factor) => [ratio * factor, ratio / factor] as const);
  const possible = pairs.filter((pair) => pair.every((side) => planned.includes(side)));
  if (possible.length < 2) {
    const message = `splitting ${ratio}x needs plans for ${ratio / 2}x and ${ratio * 2}x; the profile has ${planned.join(', ')}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { ratio });
  }
  return possible.map(([keyRatio, valueRatio]) =>
    kvtc(`keys ${keyRatio}x, values ${valueRatio}x`, { keyRatio, valueRatio }),
  );
}

/** Nothing where the profile's basis has not p ÷ ratio components. */
function truncated(transforms: Transforms, ratio: number): Variant[] {
  const { rank, model } = transforms.profile;
  const fits = STREAMS.every((stream) => Math.floor(streamWidth(model.geometry, stream) / ratio) <= rank[stream]);
  if (!fits) return [];
  return [{ set: 'plan', value: 'truncation', ratio, treatment: truncationTreatment(transforms, { ratio }) }];
}

/** The default treatment of another profile, told from the first by what was changed. */
export function profileVariant(
  set: AblationSet,
  value: string | number,
  transforms: Transforms,
  ratio: number,
): Variant {
  const treatment = kvtcTreatment(transforms, { ratio });
  return {
    set,
    value,
    ratio,
    treatment: {
      ...treatment,
      label: `${treatment.label}, ${set} ${value}`,
      // A plan is no part of a profile's id.
      settings: { ...treatment.settings, [set]: value },
    },
  };
}
