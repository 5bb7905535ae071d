// Tasks whose answer stands at a depth: a small grid of length × depth for each treatment, to be seen side by side.
// Does not know: how tasks are made.

import type { TaskCell } from '../tasks/figures.ts';
import type { Figure } from './chart.ts';
import { FAINT, FONT_SIZE, HEAT, INK, Plot, drawChart, wholeNumber } from './chart.ts';

/** Of one grid, drawing units: two stand side by side on a phone. */
const WIDTH = 180;

/** Share of answers kept, worst to best. */
const SHARES = [
  { least: 0, label: 'none', colour: HEAT[0] ?? INK },
  { least: 1e-9, label: 'under half', colour: HEAT[2] ?? INK },
  { least: 0.5, label: 'half or more', colour: HEAT[4] ?? INK },
  { least: 1, label: 'all', colour: HEAT[6] ?? INK },
] as const;

/** True for tasks that a grid can show: answers at several depths or lengths. */
export function hasGrid(cells: readonly TaskCell[]): boolean {
  const depths = cells.filter(({ depth }) => depth !== null);
  return new Set(depths.map(({ lengthTokens, depth }) => `${lengthTokens} ${depth}`)).size > 1;
}

export function needleChart(task: string, treatment: string, cells: readonly TaskCell[]): Figure {
  const placed = cells.filter((cell) => cell.depth !== null);
  const lengths = [...new Set(placed.map(({ lengthTokens }) => lengthTokens))].toSorted((a, b) => a - b);
  const depths = [...new Set(placed.map(({ depth }) => depth ?? 0))].toSorted((a, b) => a - b);
  const every = Math.ceil(depths.length / 8);
  const svg = drawChart(`${task} with ${treatment}: answers kept by length and depth`, {
    width: WIDTH,
    height: 30 + Math.max(14, Math.min(22, 130 / depths.length)) * depths.length,
    marginTop: 4,
    marginBottom: 26,
    marginLeft: 46,
    marginRight: 2,
    x: {
      type: 'band',
      domain: lengths,
      ticks: lengths.filter((_, i) => i % Math.ceil(lengths.length / 3) === 0),
      tickFormat: wholeNumber,
      tickSize: 0,
      label: null,
      padding: 0.05,
    },
    y: {
      type: 'band',
      domain: depths,
      ticks: depths.filter((_, i) => i % every === 0),
      tickFormat: (depth: number) => `${Math.round(100 * depth)}\u00a0%`,
      tickSize: 0,
      label: null,
      padding: 0.05,
    },
    marks: [
      Plot.cell(placed, {
        x: 'lengthTokens',
        y: 'depth',
        fill: ({ correct, exactCorrect }: TaskCell) =>
          exactCorrect === 0
            ? 'none'
            : (SHARES.findLast(({ least }) => correct / exactCorrect >= least)?.colour ?? INK),
        stroke: FAINT,
        strokeWidth: 0.6,
        title: ({ lengthTokens, depth, correct, exactCorrect, questions }: TaskCell) =>
          `${lengthTokens} tokens, depth ${Math.round(100 * (depth ?? 0))} %: ${correct} of ${exactCorrect} answers kept, ${questions} asked`,
      }),
      Plot.text(
        placed.filter(({ exactCorrect }) => exactCorrect === 0),
        { x: 'lengthTokens', y: 'depth', text: () => '–', fill: INK, fontSize: FONT_SIZE - 1 },
      ),
    ],
  });
  return {
    id: `grid-${task}-${treatment.replaceAll(/[^\w]+/gu, '-')}`,
    title: treatment,
    svg,
    caption: '',
  };
}

/** What the colours of every grid mean. */
export const GRID_LEGEND = SHARES.map(({ label, colour }) => ({ label, colour }));
