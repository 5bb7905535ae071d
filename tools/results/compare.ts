// A figure beside the oracle's: how far apart, whether that is more than the evidence allows, and why. Does not know:
// tables, where explanations come from.

/** Relative deviation beyond which a figure is marked and must be explained. */
const ALLOWED_DEVIATION = 0.15;

/** A place in the published tables, `MODEL/table/row/column`, where ours and the oracle's figure lie far apart. */
export interface Deviation {
  /** Title of the run that it is of. */
  readonly run: string;
  readonly place: string;
  readonly ours: number;
  readonly theirs: number;
}

export interface Comparison {
  /** Both figures, with the deviation, and a mark where it is too large. */
  cell(place: string, ours: number | null | undefined, theirs: number | undefined, options: CellOptions): string;
  /** Of the run, in the order of its cells. */
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

/** Compares the figures of the run of that title. */
export function openComparison(run: string): Comparison {
  const deviations: Deviation[] = [];
  return {
    deviations,
    cell: (place, ours, theirs, { format, floor = 0 }) => {
      if (ours === null || ours === undefined) return theirs === undefined ? '–' : `– (${format(theirs)})`;
      if (theirs === undefined) return format(ours);
      if (!deviates(ours, theirs, floor)) return `${format(ours)} (${format(theirs)})`;
      deviations.push({ run, place, ours, theirs });
      const percent = Math.round(100 * (ours / theirs - 1));
      return `**${format(ours)}** (${format(theirs)}, ${percent > 0 ? '+' : '−'}${Math.abs(percent)} %)`;
    },
  };
}

/** Stands where a deviation has no explanation. */
const UNEXPLAINED = 'Not explained yet.';

/** Explanation by explanation, below each the figures of every run that it is of. */
export function deviationsText(
  deviations: readonly Deviation[],
  explanations: Readonly<Record<string, string>>,
): string {
  if (deviations.length === 0) return '';
  const byCause = Map.groupBy(deviations, ({ place }) => explanations[place] ?? UNEXPLAINED);
  const lines = [...byCause].flatMap(([why, found]) => [
    `* ${why}`,
    ...[...Map.groupBy(found, ({ run }) => run)].map(([run, ofRun]) => {
      const figures = ofRun.map(({ place, ours, theirs }) => {
        const [row, column] = place.split('/').slice(-2);
        return `${row} ${column} ${Number(ours.toPrecision(3))} against ${theirs}`;
      });
      return `  * ${run}: ${figures.join('; ')}.`;
    }),
  ]);
  return `### Deviations from the reference\n\n${lines.join('\n')}\n`;
}
