// Climbs from a setting of wtc to better ones by measured loss: the exponent of token steps on a short list, the values'
// step against the keys' in half octaves. Does not know: how losses are measured, profiles, engines.

import { SCALE_UNITS } from '../../codec/wtc/classes.ts';

export interface TunedSetting {
  /** How far predicted importances move a token's step. */
  readonly exponent: number;
  /** Step index of values less that of keys. */
  readonly valueOffset: number;
}

interface Losses {
  readonly klNats: number;
  readonly copyKlNats: number;
}

export interface TunedLoss extends Losses {
  /** Of each document, in the same order for all settings. */
  readonly byDocument: readonly Losses[];
}

export type TriedSetting<Loss extends TunedLoss> = TunedSetting & Loss;

/** More exponent predicts better and copies worse (evidence.md 2). */
export const EXPONENTS = [0, 0.15, 0.3, 0.45];

const OFFSET_STRIDE = SCALE_UNITS / 2;
/** Offsets farther than this from the first are not tried. */
const OFFSET_REACH = 8 * OFFSET_STRIDE;
/** Neither loss may exceed its first value by more than this share. */
const TOLERATED_LOSS = 0.05;
/** Settings are left only for others that are better by this share: less is not worth new steps. */
const LEAST_GAIN = 0.02;
const LEAST_LOSS = 1e-12;

/**
 * Hill climbing on the grid of settings. The figure of merit is the geometric mean, over documents and both losses, of
 * their share of another setting's. A setting is left for one that gains 2 % and more than the standard error of that mean
 * over documents, which differ by more than settings do. None is taken where either loss exceeds that of `start` by 5 %. `measure` gets
 * lists of settings not measured before, the first one with its neighbours. Returns all settings in the order tried,
 * `start` first, and the index of the best.
 */
export async function searchSettings<Loss extends TunedLoss>(
  start: TunedSetting,
  exponents: readonly number[],
  measure: (settings: readonly TunedSetting[]) => Promise<readonly Loss[]>,
): Promise<{ readonly tried: readonly TriedSetting<Loss>[]; readonly chosen: number }> {
  const grid = [...new Set([...exponents, start.exponent])].toSorted((a, b) => a - b);
  const tried: TriedSetting<Loss>[] = [];
  const isNew = ({ exponent, valueOffset }: TunedSetting): boolean =>
    Math.abs(valueOffset - start.valueOffset) <= OFFSET_REACH &&
    !tried.some((one) => one.exponent === exponent && one.valueOffset === valueOffset);
  let best: TunedSetting = start;
  let chosen = 0;
  for (;;) {
    const round = [...(tried.length === 0 ? [start] : []), ...neighbours(best, grid).filter(isNew)];
    if (round.length === 0) return { tried, chosen };
    const losses = await measure(round);
    tried.push(...round.map((setting, i) => ({ ...setting, ...(losses[i] as Loss) })));
    const first = tried[0] as TunedLoss;
    const current = tried[chosen] as TunedLoss;
    const gains = tried.map((one) => (isTolerated(one, first) ? sureGain(one, current) : 0));
    const most = Math.max(...gains);
    if (!(most > 0)) return { tried, chosen };
    chosen = gains.indexOf(most);
    best = tried[chosen] as TunedSetting;
  }
}

function neighbours({ exponent, valueOffset }: TunedSetting, grid: readonly number[]): TunedSetting[] {
  const at = grid.indexOf(exponent);
  return [
    { exponent, valueOffset: valueOffset - OFFSET_STRIDE },
    { exponent, valueOffset: valueOffset + OFFSET_STRIDE },
    ...[grid[at - 1], grid[at + 1]]
      .filter((other) => other !== undefined)
      .map((other) => ({ exponent: other, valueOffset })),
  ];
}

/** Whether neither loss is much worse than that of the first setting. */
function isTolerated(loss: Losses, first: Losses): boolean {
  return logShares(loss, first).every((share) => share <= Math.log(1 + TOLERATED_LOSS));
}

/** How much of the logarithm of `current`'s losses `loss` gains on average; 0 where that may be chance. */
function sureGain(loss: TunedLoss, current: TunedLoss): number {
  const gains = loss.byDocument.map((one, d) => {
    const [kl = 0, copyKl = 0] = logShares(one, current.byDocument[d] as Losses);
    return -(kl + copyKl) / 2;
  });
  const mean = gains.reduce((sum, gain) => sum + gain, 0) / gains.length;
  const squares = gains.reduce((sum, gain) => sum + (gain - mean) ** 2, 0);
  const error = Math.sqrt(squares / Math.max(1, gains.length - 1) / gains.length);
  return mean > -Math.log(1 - LEAST_GAIN) && mean > error ? mean : 0;
}

function logShares(loss: Losses, other: Losses): number[] {
  const share = (a: number, b: number): number => Math.log(Math.max(a, LEAST_LOSS) / Math.max(b, LEAST_LOSS));
  return [share(loss.klNats, other.klNats), share(loss.copyKlNats, other.copyKlNats)];
}
