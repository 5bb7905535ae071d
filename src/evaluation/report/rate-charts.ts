// Rate against loss: a line over its ratios for every codec of ours, rivals as points, the engine's own noise as a band;
// and the sentences that sum it up. Does not know: profiles, rows, how the page is laid out.

import { isPaperSeries, seriesNames, seriesOf } from '../series.ts';
import type { EvaluationRow } from '../summary.ts';
import type { Figure } from './chart.ts';
import {
  BAND,
  CHART_HEIGHT,
  CHART_WIDTH,
  FONT_SIZE,
  INK,
  PAPER,
  Plot,
  RIVAL_COLOUR,
  SERIES_COLOURS,
  decades,
  drawChart,
  octaves,
  shortNumber,
} from './chart.ts';
import { placeLabels } from './labels.ts';

export type Measure = 'klNats' | 'copyKlNats';
export type Rate = 'effectiveRatio' | 'paperRatio';

const FRAME = { left: 56, right: CHART_WIDTH - 6, top: 26, bottom: CHART_HEIGHT - 40 };

const MEASURE_NAMES: Readonly<Record<Measure, string>> = {
  klNats: 'KL of the next token, nats',
  copyKlNats: 'KL when copying, nats',
};
const RATE_NAMES: Readonly<Record<Rate, string>> = {
  effectiveRatio: 'times smaller, every byte counted',
  paperRatio: "times smaller, by the paper's count",
};

/** A row of a codec of ours over its ratios. Such rows make lines. */
export function isPlainKvtc(row: EvaluationRow): boolean {
  return seriesOf(row) !== null;
}

/** Rows that were compressed and measured, with what is drawn of them. */
interface RatePoint {
  readonly row: EvaluationRow;
  readonly ratio: number;
  readonly value: number;
}

function pointsOf(
  rows: readonly EvaluationRow[],
  rate: Rate,
  valueOf: (row: EvaluationRow) => number | null | undefined,
): RatePoint[] {
  return rows.flatMap((row) => {
    const ratio = row[rate];
    const value = valueOf(row) ?? NaN;
    return ratio === null || !Number.isFinite(value) ? [] : [{ row, ratio, value }];
  });
}

/** Loss against size, both logarithmic, with the floor as a band. Null when no row has both. */
export function rateChart(
  id: string,
  rows: readonly EvaluationRow[],
  floor: EvaluationRow,
  measure: Measure,
  rate: Rate,
): Figure | null {
  const points = pointsOf(rows, rate, (row) => row[measure]);
  if (points.length === 0) return null;
  const noise = floor[measure];
  const positive = [...points.map(({ value }) => value), noise].filter((value) => value > 0);
  const bottom = noise > 0 ? noise / 2 : Math.min(...positive, 1) / 2;
  const domain = [bottom, Math.max(...positive, bottom * 10) * 1.7] as const;
  const xDomain = ratioDomain(points);
  const band = [
    Plot.rect([0], { x1: xDomain[0], x2: xDomain[1], y1: bottom, y2: noise, fill: BAND }),
    Plot.text([0], {
      x: xDomain[1],
      y: Math.sqrt(bottom * noise),
      text: () => "the engine's own noise",
      textAnchor: 'end',
      dx: -4,
      fill: INK,
      fillOpacity: 0.7,
      fontSize: FONT_SIZE - 1,
    }),
  ];
  const svg = drawRate(
    points.map((point) => ({ ...point, value: Math.max(point.value, bottom) })),
    {
      label: `${MEASURE_NAMES[measure]} against size: ${RATE_NAMES[rate]}`,
      xDomain,
      rate,
      y: { type: 'log', domain, ticks: decades(domain), tickFormat: shortNumber, label: MEASURE_NAMES[measure] },
      yShare: (value) => logShare(value, domain),
      under: noise > 0 ? band : [],
      tooltip: ({ row }) => `${row[measure].toPrecision(3)} nats`,
    },
  );
  const names = seriesNames(points.map(({ row }) => row));
  const legend = names.length < 2 ? [] : names.map((label, i) => ({ label, colour: seriesColour(i) }));
  const title = `${measure === 'klNats' ? 'Prediction' : 'Copying'}, ${rate === 'effectiveRatio' ? 'every byte counted' : "by the paper's count"}`;
  const caption = `Down is better, right is better. ${rate === 'effectiveRatio' ? 'Window, scales and headers are counted.' : 'A window of exact tokens is left out.'}`;
  return { id, title, svg, caption, legend };
}

/** Share of a task's questions that are still answered, against size. Null when the exact cache answers none. */
export function taskChart(task: string, rows: readonly EvaluationRow[]): Figure | null {
  const points = pointsOf(rows, 'effectiveRatio', (row) => row.tasks?.[task]?.accuracy);
  if (points.length === 0) return null;
  const domain = [-4, 104] as const;
  const svg = drawRate(
    points.map((point) => ({ ...point, value: 100 * point.value })),
    {
      label: `Answers to ${task} kept, against size`,
      xDomain: ratioDomain(points),
      rate: 'effectiveRatio',
      y: { domain, ticks: [0, 25, 50, 75, 100], label: 'answers kept, %' },
      yShare: (value) => (value - domain[0]) / (domain[1] - domain[0]),
      under: [],
      tooltip: ({ row }) => `${row.tasks?.[task]?.correct} of ${row.tasks?.[task]?.exactCorrect} answers kept`,
    },
  );
  const figures = points[0]?.row.tasks?.[task];
  const names = seriesNames(points.map(({ row }) => row));
  const legend = names.length < 2 ? [] : names.map((label, i) => ({ label, colour: seriesColour(i) }));
  const caption = `Of the ${figures?.exactCorrect} of ${figures?.questions} questions that the exact cache answers. Up is better, right is better.`;
  return { id: `task-${task}`, title: `Task: ${task}`, svg, caption, legend };
}

interface RateDrawing {
  readonly label: string;
  readonly xDomain: readonly [number, number];
  readonly rate: Rate;
  readonly y: Plot.ScaleOptions;
  /** Height of a value as a share of the frame. */
  readonly yShare: (value: number) => number;
  readonly under: readonly Plot.Markish[];
  readonly tooltip: (point: RatePoint) => string;
}

function seriesColour(index: number): string {
  return SERIES_COLOURS[index % SERIES_COLOURS.length] ?? INK;
}

/** A line for every series, everything else as points, each with its name where there is room. */
function drawRate(points: readonly RatePoint[], drawing: RateDrawing): string {
  const { xDomain, yShare } = drawing;
  const place = ({ ratio, value }: RatePoint): { x: number; y: number } => ({
    x: FRAME.left + (FRAME.right - FRAME.left) * logShare(ratio, xDomain),
    y: FRAME.bottom - (FRAME.bottom - FRAME.top) * yShare(value),
  });
  const names = seriesNames(points.map(({ row }) => row));
  const lines = names.map((name) =>
    points.filter(({ row }) => seriesOf(row) === name).toSorted((a, b) => a.ratio - b.ratio),
  );
  const line = lines.flat();
  const others = points.filter(({ row }) => !isPlainKvtc(row));
  const labels = placeLabels(
    [...line, ...others].map((point) => ({
      ...place(point),
      label: isPlainKvtc(point.row) ? `${point.row.ratio}x` : point.row.treatment.replace(/ on rows$|^kvtc /u, ''),
    })),
    FRAME,
    lines.flatMap((one) => alongLine(one.map(place))),
    FONT_SIZE - 1,
  );
  return drawChart(drawing.label, {
    marginLeft: FRAME.left,
    marginRight: CHART_WIDTH - FRAME.right,
    marginTop: FRAME.top,
    marginBottom: CHART_HEIGHT - FRAME.bottom,
    x: {
      type: 'log',
      base: 2,
      domain: xDomain,
      ticks: octaves(xDomain),
      tickFormat: shortNumber,
      label: RATE_NAMES[drawing.rate],
    },
    y: { ...drawing.y, grid: true },
    marks: [
      ...drawing.under,
      ...lines.map((one, i) => Plot.line(one, { x: 'ratio', y: 'value', stroke: seriesColour(i), strokeWidth: 2 })),
      Plot.dot([...others, ...line], {
        x: 'ratio',
        y: 'value',
        r: 4,
        fill: ({ row }: RatePoint) => {
          const index = names.indexOf(seriesOf(row) ?? '');
          return index < 0 ? RIVAL_COLOUR : seriesColour(index);
        },
        stroke: PAPER,
        title: (point: RatePoint) =>
          `${point.row.treatment}: ${point.ratio.toFixed(2)} times smaller, ${drawing.tooltip(point)}`,
      }),
      ...labels.map(({ label, textX, textY, anchor }) =>
        Plot.text([label], {
          frameAnchor: 'top-left',
          dx: textX - FRAME.left,
          dy: textY - FRAME.top,
          text: (name: string) => name,
          textAnchor: anchor,
          lineAnchor: 'middle',
          fontSize: FONT_SIZE - 1,
          fill: INK,
        }),
      ),
    ],
  });
}

function ratioDomain(points: readonly RatePoint[]): [number, number] {
  const ratios = points.map(({ ratio }) => ratio);
  return [Math.min(...ratios) / 1.25, Math.max(...ratios) * 1.3];
}

/** Points along a polyline, close enough that no label fits between. */
function alongLine(corners: readonly { x: number; y: number }[]): { x: number; y: number }[] {
  return corners.slice(1).flatMap((end, i) => {
    const start = corners[i] ?? end;
    return Array.from({ length: 9 }, (_, k) => ({
      x: start.x + ((end.x - start.x) * (k + 1)) / 10,
      y: start.y + ((end.y - start.y) * (k + 1)) / 10,
    }));
  });
}

function logShare(value: number, [low, high]: readonly [number, number]): number {
  return Math.log(value / low) / Math.log(high / low);
}

/** Which rivals a KVTC row beats on size and loss at once, and which beat one. */
export function comparison(
  rows: readonly EvaluationRow[],
  measure: Measure,
): { readonly beaten: readonly string[]; readonly beating: readonly string[]; readonly apart: readonly string[] } {
  const kvtc = rows.filter(isPlainKvtc);
  const rivals = rows.filter((row) => !/^(kvtc|wtc)\b/u.test(row.treatment) && row.effectiveRatio !== null);
  const dominates = (a: EvaluationRow, b: EvaluationRow): boolean =>
    (a.effectiveRatio ?? 0) >= (b.effectiveRatio ?? 0) && a[measure] <= b[measure];
  const beaten = rivals.filter((rival) => kvtc.some((row) => dominates(row, rival)));
  const beating = rivals.filter((rival) => kvtc.some((row) => dominates(rival, row)));
  const apart = rivals.filter((rival) => !beaten.includes(rival) && !beating.includes(rival));
  const names = (list: readonly EvaluationRow[]): string[] => list.map(({ treatment }) => treatment);
  return { beaten: names(beaten), beating: names(beating), apart: names(apart) };
}

/** The row nearest the paper's 16x, of the published codec where it was measured; else the first row. */
export function mainRow(rows: readonly EvaluationRow[]): EvaluationRow | undefined {
  const distance = (row: EvaluationRow): number => Math.abs(Math.log2((row.ratio ?? 1) / 16));
  const [series] = seriesNames(rows).toSorted((a, b) => Number(isPaperSeries(b)) - Number(isPaperSeries(a)));
  const own = rows.filter((row) => series !== undefined && seriesOf(row) === series);
  return own.toSorted((a, b) => distance(a) - distance(b))[0] ?? rows[0];
}
