// Climbs from a setting of wtc to better ones by measured loss: the exponent of token steps on a short list, the values'
// step against the keys' in half octaves. Does not know: how losses are measured, profiles, engines.

import { SCALE_UNITS } from '../../codec/wtc/classes.ts';

export interface TunedSetting {
  /** How far predicted importances move a token's step. */
  readonly exponent: number;
  /** Step index of values less that of keys. */
  readonly valueOffset: number;
}

export interface TunedLoss {
  readonly klNats: number;
  readonly copyKlNats: number;
}

export type TriedSetting<Loss extends TunedLoss> = TunedSetting & Loss;

/** More exponent predicts better and copies worse (evidence.md 2). */
export const EXPONENTS = [0, 0.15, 0.3, 0.45];

const OFFSET_STRIDE = SCALE_UNITS / 2;
/** Offsets farther than this from the first are not tried. */
const OFFSET_REACH = 8 * OFFSET_STRIDE;
/** Neither loss may exceed its first value by more than this share. */
const TOLERATED_LOSS = 0.05;
/** Settings are left only for others that are better by this share: less is noise on a few documents. */
const LEAST_GAIN = 0.02;
const LEAST_LOSS = 1e-12;

/**
 * Hill climbing on the grid of settings. The figure of merit is the geometric mean of both losses against those of
 * `start`; settings where either exceeds its first value by 5 % are not taken. `measure` gets lists of settings not
 * measured before, the first alone with its neighbours. Returns all settings in the order tried, `start` first, and the
 * index of the best.
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
    const merits = tried.map((one) => relativeLoss(one, tried[0] as TunedLoss));
    const least = merits.indexOf(Math.min(...merits));
    if (!((merits[least] as number) < (merits[chosen] as number) * (1 - LEAST_GAIN))) return { tried, chosen };
    chosen = least;
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

/** Geometric mean of both losses over those of the first setting; infinite where one is much worse. */
function relativeLoss(loss: TunedLoss, first: TunedLoss): number {
  const shares = [
    Math.max(loss.klNats, LEAST_LOSS) / Math.max(first.klNats, LEAST_LOSS),
    Math.max(loss.copyKlNats, LEAST_LOSS) / Math.max(first.copyKlNats, LEAST_LOSS),
  ];
  if (!shares.every((share) => share <= 1 + TOLERATED_LOSS)) return Infinity;
  return Math.sqrt(shares.reduce((product, share) => product * share, 1));
}
