// A figure beside the oracle's: how far apart, and whether that is more than the evidence allows. Does not know: tables.

/** Relative deviation beyond which a figure is marked and must be explained. */
const ALLOWED_DEVIATION = 0.15;

/** A place in the published tables, `MODEL/table/row/column`, where ours and the oracle's figure lie far apart. */
export interface Deviation {
  readonly place: string;
  readonly ours: number;
  readonly theirs: number;
}

export interface Comparison {
  /** Both figures, with the deviation, and a mark where it is too large. */
  cell(place: string, ours: number | null | undefined, theirs: number | undefined, options: CellOptions): string;
  /** In the order of the cells. */
  readonly deviations: readonly Deviation[];
}

export interface CellOptions {
  readonly format: (value: number) => string;
  /** Differences of this size are the engine's own noise and mark nothing; 0 by default. */
  readonly floor?: number | undefined;
}

/** True when `ours` is more than 15 % and more than the floor away from `theirs`. */
export function deviates(ours: number, theirs: number, floor = 0): boolean {
  const difference = Math.abs(ours - theirs);
  return difference > ALLOWED_DEVIATION * Math.abs(theirs) && difference > floor;
}

export function openComparison(): Comparison {
  const deviations: Deviation[] = [];
  return {
    deviations,
    cell: (place, ours, theirs, { format, floor = 0 }) => {
      if (ours === null || ours === undefined) return theirs === undefined ? '–' : `– (${format(theirs)})`;
      if (theirs === undefined) return format(ours);
      if (!deviates(ours, theirs, floor)) return `${format(ours)} (${format(theirs)})`;
      deviations.push({ place, ours, theirs });
      const percent = Math.round(100 * (ours / theirs - 1));
      return `**${format(ours)}** (${format(theirs)}, ${percent > 0 ? '+' : '−'}${Math.abs(percent)} %)`;
    },
  };
}
