// Holds compression to what was measured: the highest ratio within a loss, and a warning for ratios nobody has measured.
// Does not know: how quality is measured (evaluation room), codecs.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import type { Profile } from '../profile/profile.ts';
import type { CompressOptions } from './compress.ts';
import { COMPRESS_DEFAULTS } from './compress.ts';

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
}

/**
 * Settles what ratio to code at and warns through `onEvent` when the profile was never measured at it. Null where keys
 * and values have ratios of their own or a step is given, of which no measurement speaks.
 * Throws KVTC_OPTION_INVALID for a limit beside a ratio or not above 0, KVTC_QUALITY_UNKNOWN when no measured ratio stays
 * under the limit.
 */
export function chooseRatio(
  profile: Pick<Profile, 'quality'>,
  options: Pick<CompressOptions, 'ratio' | 'keyRatio' | 'valueRatio' | 'step'> &
    RatioChoice &
    Pick<RunOptions, 'onEvent'>,
): ChosenRatio | null {
  const { ratio, keyRatio, valueRatio, step, maxKlNats, onEvent } = options;
  const worst = worstKl(profile);
  if (maxKlNats === undefined) {
    if (keyRatio !== undefined || valueRatio !== undefined || step !== undefined) return null;
    const chosen = ratio ?? COMPRESS_DEFAULTS.ratio;
    const measuredKlNats = worst.get(chosen) ?? null;
    if (measuredKlNats === null) {
      const message = `nobody has measured what ratio ${chosen} costs with this profile; kvtc verify --quality does`;
      onEvent?.({ type: 'warning', message });
    }
    return { ratio: chosen, measuredKlNats };
  }
  if ([ratio, keyRatio, valueRatio, step].some((given) => given !== undefined)) {
    throw new KvtcError('KVTC_OPTION_INVALID', 'give either a ratio (or step) or the KL to stay under, not both');
  }
  if (!(maxKlNats > 0)) {
    const message = `the KL to stay under is ${maxKlNats}; expected a number above 0`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'maxKlNats', got: maxKlNats });
  }
  const within = [...worst].filter(([, klNats]) => klNats <= maxKlNats).toSorted(([a], [b]) => b - a);
  const [best] = within;
  if (best !== undefined) return { ratio: best[0], measuredKlNats: best[1] };
  const found = [...worst].toSorted(([a], [b]) => a - b).map(([one, klNats]) => `${one}x: ${klNats.toPrecision(2)}`);
  throw new KvtcError(
    'KVTC_QUALITY_UNKNOWN',
    found.length === 0
      ? 'the profile was never measured, so no ratio is known to stay under a KL; kvtc verify --quality measures it'
      : `no measured ratio stays under ${maxKlNats} nats; measured are ${found.join(', ')}`,
    { maxKlNats },
  );
}

/** The largest KL of each measured ratio: texts and weights differ, and the user's next text may be like any of them. */
function worstKl({ quality }: Pick<Profile, 'quality'>): ReadonlyMap<number, number> {
  const worst = new Map<number, number>();
  for (const { ratio, klNats } of quality) worst.set(ratio, Math.max(klNats, worst.get(ratio) ?? -Infinity));
  return worst;
}
