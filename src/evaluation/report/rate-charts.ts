// Rate against loss: a line over its ratios for every codec of ours, rivals as points, the engine's own noise as a band;
// and the sentences that sum it up. Does not know: profiles, rows, how the page is laid out.

import { seriesNames, seriesOf } from '../series.ts';
import type { EvaluationRow } from '../summary.ts';
import type { Figure } from './chart.ts';
import {
  BAND,
  CHART_WIDTH,
  FAINT,
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
import type { Measure, Rate, RatePoint } from './comparison.ts';
import { conclusion, isPlainKvtc, isVariant, pointsOf, rivalsOf } from './comparison.ts';
import type { PlacedLabel } from './labels.ts';
import { placeLabels } from './labels.ts';
import { list, times } from './words.ts';

/** Taller than other charts: labels need the room. */
const HEIGHT = 320;
const FRAME = { left: 56, right: CHART_WIDTH - 6, top: 26, bottom: HEIGHT - 40 };

const MEASURE_NAMES: Readonly<Record<Measure, string>> = {
  klNats: 'KL of the next token, nats',
  copyKlNats: 'KL when copying, nats',
};
const RATE_NAMES: Readonly<Record<Rate, string>> = {
  effectiveRatio: 'times smaller, every byte counted',
  paperRatio: "times smaller, by the paper's count",
};

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
  const domain = [bottom, Math.max(...positive, bottom * 10) * 4] as const;
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
  const title = `${measure === 'klNats' ? 'Prediction' : 'Copying'}, ${rate === 'effectiveRatio' ? 'every byte counted' : "by the paper's count"}`;
  const counted =
    rate === 'effectiveRatio'
      ? 'Down and right is better; every byte of the file counts.'
      : 'Down and right is better; the tokens kept exact are left out, as the paper counts.';
  const caption = `${counted} ${conclusion(rows, measure, rate)}`;
  return { id, title, svg, caption, legend: legendOf(points) };
}

function legendOf(points: readonly RatePoint[]): { colour: string; label: string }[] {
  const rows = points.map(({ row }) => row);
  const others = [...(rows.some(isVariant) ? ['variants'] : []), ...(rivalsOf(rows).length > 0 ? ['rivals'] : [])];
  return [
    ...seriesNames(rows).map((label, i) => ({ label, colour: seriesColour(i) })),
    ...(others.length > 0 ? [{ label: list(others), colour: RIVAL_COLOUR }] : []),
  ];
}

const TASK_TITLES: Readonly<Record<string, string>> = {
  kv: 'kv: the value of one key in a list',
  needle: 'needle: one fact in a long text',
  vt: 'vt: a value handed on from name to name',
  cwe: 'cwe: the words that are most common',
  fwe: 'fwe: the made-up words that are most frequent',
  multiturn: 'multiturn: four facts, asked one after the other',
  copy: 'copy: a passage, word for word',
  greedy: 'greedy: writing on as the exact cache does',
};

/** Share of a task's questions that are still answered, against size. Null when the exact cache answers none. */
export function taskChart(task: string, rows: readonly EvaluationRow[]): Figure | null {
  const points = pointsOf(rows, 'effectiveRatio', (row) => row.tasks?.[task]?.accuracy);
  if (points.length === 0) return null;
  const domain = [-4, 116] as const;
  const svg = drawRate(
    points.map((point) => ({ ...point, value: 100 * point.value })),
    {
      label: `Answers to ${task} kept, against size`,
      xDomain: ratioDomain(points),
      rate: 'effectiveRatio',
      y: { domain, ticks: [0, 25, 50, 75, 100], label: 'answers kept, %' },
      yShare: (value) => (value - domain[0]) / (domain[1] - domain[0]),
      under: [whiskers(task, points)],
      tooltip: ({ row }) => `${row.tasks?.[task]?.correct} of ${row.tasks?.[task]?.exactCorrect} answers kept`,
    },
  );
  const figures = points[0]?.row.tasks?.[task];
  const caption = `Share of the ${figures?.exactCorrect} answers that the exact cache gives, of ${figures?.questions} questions. Up and right is better.${keptText(task, rows)} Whiskers: what so few answers leave open (95\u00a0% interval).`;
  return { id: `task-${task}`, title: TASK_TITLES[task] ?? task, svg, caption, legend: legendOf(points) };
}

/** Up to which size each codec keeps every answer. */
function keptText(task: string, rows: readonly EvaluationRow[]): string {
  const sentences = seriesNames(rows).map((name) => {
    const own = rows
      .filter((row) => seriesOf(row) === name && row.effectiveRatio !== null)
      .toSorted((a, b) => (a.effectiveRatio ?? 0) - (b.effectiveRatio ?? 0));
    const lost = own.findIndex((row) => row.tasks?.[task]?.accuracy !== 1);
    const last = lost < 0 ? own.at(-1) : own[lost - 1];
    return last === undefined
      ? `${name} loses some at every ratio`
      : `${name} keeps all up to ${last.ratio}x (${times(last.effectiveRatio)} times smaller)`;
  });
  return sentences.length === 0 ? '' : ` ${list(sentences)}.`;
}

/** Wilson's 95 % interval of the share of answers kept, for the lines' points. */
function whiskers(task: string, points: readonly RatePoint[]): Plot.Markish {
  const names = seriesNames(points.map(({ row }) => row));
  const intervals = points
    .filter(({ row }) => isPlainKvtc(row))
    .map(({ row, ratio, value }) => {
      const [low, high] = wilsonInterval(value, row.tasks?.[task]?.exactCorrect ?? 1);
      return { ratio, low: 100 * low, high: 100 * high, colour: seriesColour(names.indexOf(seriesOf(row) ?? '')) };
    });
  return Plot.ruleX(intervals, {
    x: 'ratio',
    y1: 'low',
    y2: 'high',
    stroke: ({ colour }: (typeof intervals)[number]) => colour,
    strokeOpacity: 0.4,
    strokeWidth: 1.5,
  });
}

/** Wilson 1927: where the true share lies at 95 % confidence, after `count` trials of which `share` succeeded. */
export function wilsonInterval(share: number, count: number): readonly [number, number] {
  const z2 = 1.96 ** 2;
  const middle = (share + z2 / (2 * count)) / (1 + z2 / count);
  const reach = Math.sqrt(z2 * ((share * (1 - share)) / count + z2 / (4 * count ** 2))) / (1 + z2 / count);
  return [Math.max(0, middle - reach), Math.min(1, middle + reach)];
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
  const colourOf = ({ row }: RatePoint): string => {
    const index = names.indexOf(seriesOf(row) ?? '');
    return index < 0 ? RIVAL_COLOUR : seriesColour(index);
  };
  const ends = lines.flatMap((one) => [one[0], one.at(-1)]).filter((point) => point !== undefined);
  const between = line.filter((point) => !ends.includes(point));
  const labels = placeLabels(
    [...new Set([...others, ...ends, ...between])].map((point) => ({
      ...place(point),
      label: isPlainKvtc(point.row) ? `${point.row.ratio}x` : point.row.treatment.replace(/ on rows$|^kvtc /u, ''),
      colour: colourOf(point),
      mayBeLed: !isPlainKvtc(point.row),
    })),
    FRAME,
    lines.flatMap((one) => alongLine(one.map(place))),
    FONT_SIZE - 1,
  );
  return drawChart(drawing.label, {
    height: HEIGHT,
    marginLeft: FRAME.left,
    marginRight: CHART_WIDTH - FRAME.right,
    marginTop: FRAME.top,
    marginBottom: HEIGHT - FRAME.bottom,
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
        fill: colourOf,
        stroke: PAPER,
        title: (point: RatePoint) =>
          `${point.row.treatment}: ${point.ratio.toFixed(2)} times smaller, ${drawing.tooltip(point)}`,
      }),
      leaders(labels),
      ...labels.map(({ label, colour, textX, textY, anchor }) =>
        Plot.text([label], {
          frameAnchor: 'top-left',
          dx: textX - FRAME.left,
          dy: textY - FRAME.top,
          text: (name: string) => name,
          textAnchor: anchor,
          lineAnchor: 'middle',
          fontSize: FONT_SIZE - 1,
          fill: colour,
          stroke: PAPER,
          strokeWidth: 3,
        }),
      ),
    ],
  });
}

/** Thin lines from points to labels that found no place beside them. */
function leaders(labels: readonly PlacedLabel[]): Plot.RenderFunction {
  return (_index, _scales, _values, _dimensions, { document }) => {
    const group = document.createElementNS('http://www.w3.org/2000/svg', 'g');
    for (const { x, y, leadX, leadY } of labels.filter(({ led }) => led)) {
      const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
      const ends = { x1: x, y1: y, x2: leadX, y2: leadY };
      for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value.toFixed(1));
      line.setAttribute('stroke', FAINT);
      group.append(line);
    }
    return group;
  };
}

function ratioDomain(points: readonly RatePoint[]): [number, number] {
  const ratios = points.map(({ ratio }) => ratio);
  return [Math.min(...ratios) / 1.5, Math.max(...ratios) * 1.35];
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
