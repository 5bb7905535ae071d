// Holds compression to what was measured: the highest ratio within a loss, and a warning for ratios nobody has measured.
// Codecs that serve every ratio are read between measured ones, never beyond. Does not know: how quality is measured (evaluation room), codecs.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { Profile } from '../profile/profile.ts';
import type { CompressOptions } from './compress.ts';
import { COMPRESS_DEFAULTS } from './compress.ts';
import type { LossPoint } from './loss-curve.ts';
import { lossAt, ratioWithin } from './loss-curve.ts';

export interface RatioChoice {
  /**
   * Instead of a ratio: the highest one whose measured KL, in nats per token, stays at or under this on every text and
   * weights the profile was measured with (`kvtc verify --quality`).
   */
  readonly maxKlNats?: number | undefined;
}

/** A ratio and the largest KL measured for it; null where nobody has measured it. */
export interface ChosenRatio {
  readonly ratio: number;
  readonly measuredKlNats: number | null;
  /** There when the ratio itself was not measured: its KL was read between those around it. */
  readonly interpolated?: true;
}

type MeasuredProfile = Pick<Profile, 'quality' | 'codec'>;

/**
 * Settles what ratio to code at and warns through `onEvent` when the profile was never measured at it. Null where keys
 * and values have ratios of their own or a step is given, of which no measurement speaks. Profiles of the paper's codec
 * serve measured ratios; those of wtc also what lies between them.
 * Throws KVTC_OPTION_INVALID for a limit beside a ratio or not above 0, KVTC_QUALITY_UNKNOWN when no measured ratio stays
 * under the limit.
 */
export function chooseRatio(
  profile: MeasuredProfile,
  options: Pick<CompressOptions, 'ratio' | 'keyRatio' | 'valueRatio' | 'step'> &
    RatioChoice &
    Pick<RunOptions, 'onEvent'>,
): ChosenRatio | null {
  const { ratio, keyRatio, valueRatio, step, maxKlNats, onEvent } = options;
  if (maxKlNats === undefined) {
    if (keyRatio !== undefined || valueRatio !== undefined || step !== undefined) return null;
    const chosen = knownRatio(profile, ratio ?? COMPRESS_DEFAULTS.ratio);
    if (chosen.measuredKlNats === null) {
      const message = `nobody has measured what ratio ${chosen.ratio} costs with this profile; kvtc verify --quality does`;
      onEvent?.({ type: 'warning', message });
    }
    return chosen;
  }
  if ([ratio, keyRatio, valueRatio, step].some((given) => given !== undefined)) {
    throw new KvtcError('KVTC_OPTION_INVALID', 'give either a ratio (or step) or the KL to stay under, not both');
  }
  if (!(maxKlNats > 0)) {
    const message = `the KL to stay under is ${maxKlNats}; expected a number above 0`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'maxKlNats', got: maxKlNats });
  }
  const best = profile.codec === 'wtc' ? highestBetween(profile, maxKlNats) : highestMeasured(profile, maxKlNats);
  if (best !== null) return knownRatio(profile, best);
  const found = [...worstKl(profile)]
    .toSorted(([a], [b]) => a - b)
    .map(([one, klNats]) => `${one}x: ${klNats.toPrecision(2)}`);
  throw new KvtcError(
    'KVTC_QUALITY_UNKNOWN',
    found.length === 0
      ? 'the profile was never measured, so no ratio is known to stay under a KL; kvtc verify --quality measures it'
      : `no measured ratio stays under ${maxKlNats} nats; measured are ${found.join(', ')}`,
    { maxKlNats },
  );
}

/** What measurements say of a ratio. */
function knownRatio(profile: MeasuredProfile, ratio: number): ChosenRatio {
  const measuredKlNats = worstKl(profile).get(ratio) ?? null;
  if (measuredKlNats !== null || profile.codec !== 'wtc') return { ratio, measuredKlNats };
  const read = curvesOf(profile)
    .map((points) => lossAt(points, ratio))
    .filter((loss) => loss !== null);
  return read.length === 0
    ? { ratio, measuredKlNats }
    : { ratio, measuredKlNats: Math.max(...read), interpolated: true };
}

function highestMeasured(profile: MeasuredProfile, maxKlNats: number): number | null {
  const within = [...worstKl(profile)].filter(([, klNats]) => klNats <= maxKlNats).map(([ratio]) => ratio);
  return within.length === 0 ? null : Math.max(...within);
}

/** The highest ratio that every text and weights say stays under the limit: none is read beyond its own points. */
function highestBetween(profile: MeasuredProfile, maxKlNats: number): number | null {
  const read = curvesOf(profile).map((points) => ratioWithin(points, maxKlNats));
  if (read.length === 0 || read.some(({ relation }) => relation === 'below')) return null;
  return Math.min(...read.map(({ ratio }) => ratio));
}

/** Measured points by text and weights. */
function curvesOf({ quality }: MeasuredProfile): LossPoint[][] {
  const curves = new Map<string, LossPoint[]>();
  for (const { ratio, klNats, text, weights } of quality) {
    const name = `${weights} ${text}`;
    const curve = curves.get(name) ?? [];
    curves.set(name, curve);
    curve.push({ ratio, loss: klNats });
  }
  return [...curves.values()];
}

/** The largest KL of each measured ratio: texts and weights differ, and the user's next text may be like any of them. */
function worstKl({ quality }: MeasuredProfile): ReadonlyMap<number, number> {
  const worst = new Map<number, number>();
  for (const { ratio, klNats } of quality) worst.set(ratio, Math.max(klNats, worst.get(ratio) ?? -Infinity));
  return worst;
}
