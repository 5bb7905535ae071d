// Tasks whose answer stands at a depth: a grid of length × depth for each treatment. Does not know: how tasks are made.

import type { TaskCell } from '../tasks/figures.ts';
import type { Figure } from './chart.ts';
import { CHART_WIDTH, FAINT, FONT_SIZE, HEAT, INK, Plot, drawChart, wholeNumber } from './chart.ts';

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
    width: CHART_WIDTH,
    height: 58 + Math.max(16, Math.min(26, 200 / depths.length)) * depths.length,
    marginTop: 6,
    marginLeft: 58,
    x: {
      type: 'band',
      domain: lengths,
      tickFormat: wholeNumber,
      tickSize: 0,
      label: 'tokens of the prefix',
      padding: 0.05,
    },
    y: {
      type: 'band',
      domain: depths,
      ticks: depths.filter((_, i) => i % every === 0),
      tickFormat: (depth: number) => `${Math.round(100 * depth)} %`,
      tickSize: 0,
      label: 'depth',
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
    title: `${task}, ${treatment}`,
    svg,
    caption:
      'Answers kept, by length of the prefix and depth of the fact in it. Dashes: the exact cache knows no answer there.',
    legend: SHARES.map(({ label, colour }) => ({ label, colour })),
  };
}
