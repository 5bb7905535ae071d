// The ablations' section: for every setting that was varied, what each value costs. Does not know: how variants are made.

import type { AblationRow } from '../ablation/ablate.ts';
import type { AblationSet } from '../ablation/variants.ts';
import type { EvaluationRow } from '../summary.ts';
import type { Figure } from './chart.ts';
import {
  BAND,
  CHART_WIDTH,
  FONT_SIZE,
  INK,
  KEY_COLOUR,
  Plot,
  VALUE_COLOUR,
  decades,
  drawChart,
  shortNumber,
} from './chart.ts';
import { isPlainKvtc } from './comparison.ts';
import { textWidth } from './labels.ts';
import { chartsHtml, sectionHtml, tableHtml } from './html.ts';
import { nats, percent, perplexity, times } from './words.ts';

/** Empty when nothing was varied. */
export function ablationSection(rows: readonly AblationRow[], floor: EvaluationRow): string {
  if (rows.length === 0) return '';
  const groups = [...new Set(rows.map(({ set, atRatio }) => `${set} at ${atRatio}x`))].map((name) => ({
    name,
    rows: rows.filter(({ set, atRatio }) => `${set} at ${atRatio}x` === name),
  }));
  const charts = groups
    .map((group) => ablationChart(group.name, group.rows, floor))
    .filter((figure) => figure !== null);
  const losses = (row: EvaluationRow): string[] => [
    nats(row.klNats),
    nats(row.copyKlNats),
    percent(row.top1Agreement),
    perplexity(row.perplexityRestored),
    `${row.documents}`,
  ];
  const lines = rows.map((row) => [
    `${row.set} ${valueName(row)}, at ${row.atRatio}x`,
    times(row.paperRatio),
    times(row.effectiveRatio),
    ...losses(row),
  ]);
  lines.push(['floor', '–', '–', ...losses(floor)]);
  const heading = [
    '',
    'paper ratio',
    'every byte',
    'KL, nats',
    'copy KL, nats',
    'same top token',
    'perplexity',
    'texts',
  ];
  return sectionHtml(
    'ablations',
    titleOf(groups),
    TEXT,
    `${chartsHtml(charts)}<h3>Every number</h3>${tableHtml(heading, lines)}`,
  );
}

const TEXT =
  'One setting varied at a time, all others at their defaults, on the same documents. What is nearer to exact is often larger too: the figures at the right of each chart are sizes.';

const SET_TITLES: Readonly<Record<AblationSet, string>> = {
  sinks: 'Sinks: oldest tokens kept exact',
  window: 'Window: newest tokens kept exact',
  plan: 'Plan: bits by component, or fewer components',
  split: 'Split of the bytes between keys and values',
  chunk: 'Chunk: tokens coded together',
  entropy: 'Entropy coder',
  groups: 'Groups: components that share a scale',
  fp8: 'Price of fp8 in the plan',
  layers: 'Layers joined in one basis',
  tokens: 'Tokens of calibration',
  domain: 'Texts of calibration',
  seed: 'Seed of calibration',
};

function valueName(row: AblationRow): string {
  return isPlainKvtc(row) ? `${row.value} (default)` : `${row.value}`;
}

/** The setting with the widest range of KL. */
function titleOf(groups: readonly { readonly name: string; readonly rows: readonly AblationRow[] }[]): string {
  const spans = groups.flatMap(({ name, rows }) => {
    const sorted = rows.filter(({ klNats }) => klNats > 0).toSorted((a, b) => a.klNats - b.klNats);
    const [best] = sorted;
    const worst = sorted.at(-1);
    return best === undefined || worst === undefined ? [] : [{ name, best, worst, factor: worst.klNats / best.klNats }];
  });
  const widest = spans.toSorted((a, b) => b.factor - a.factor)[0];
  return widest === undefined || widest.factor === 1
    ? 'What each setting is worth'
    : `Nothing matters more than ${widest.name}: ${widest.worst.value} costs ${shortNumber(widest.factor)} times the KL of ${widest.best.value}`;
}

/** KL by value; or size by value, for settings that leave the restored cache as it is. */
function ablationChart(name: string, rows: readonly AblationRow[], floor: EvaluationRow): Figure | null {
  const losses = rows.map(({ klNats }) => klNats);
  const lossless = Math.max(...losses) - Math.min(...losses) < 1e-9 + Math.max(0, floor.klNats);
  return lossless && rows.length > 1 ? sizeChart(name, rows) : lossChart(name, rows, floor);
}

function lossChart(name: string, rows: readonly AblationRow[], floor: EvaluationRow): Figure | null {
  const points = rows.flatMap((row) => [
    { value: valueName(row), x: row.klNats, colour: KEY_COLOUR, title: `${row.value}: ${nats(row.klNats)} nats` },
    {
      value: valueName(row),
      x: row.copyKlNats,
      colour: VALUE_COLOUR,
      title: `${row.value}: ${nats(row.copyKlNats)} nats when copying`,
    },
  ]);
  const drawn = points.filter(({ x }) => x > 0 && Number.isFinite(x));
  if (drawn.length === 0) return null;
  const most = Math.max(...drawn.map(({ x }) => x));
  const least = Math.min(...drawn.map(({ x }) => x));
  const near = floor.klNats > least / 20;
  const domain = [(near ? Math.min(least, floor.klNats) : least) / 1.5, most * 1.5] as const;
  const x = {
    type: 'log',
    domain,
    ticks: decades(domain),
    tickFormat: shortNumber,
    grid: true,
    label: 'KL, nats',
  } as const;
  const band = near ? [Plot.rect([0], { x1: domain[0], x2: floor.klNats, fill: BAND })] : [];
  return {
    ...dotFigure(name, rows, drawn, x, band),
    caption: `Left is better. ${spanText(rows)}${near ? ' The band is the noise of the engine itself.' : ''} At the right: times smaller, every byte counted.`,
    legend: [
      { colour: KEY_COLOUR, label: 'prediction' },
      { colour: VALUE_COLOUR, label: 'copying' },
    ],
  };
}

function spanText(rows: readonly AblationRow[]): string {
  const sorted = rows.filter(({ klNats }) => klNats > 0).toSorted((a, b) => a.klNats - b.klNats);
  const [best] = sorted;
  const worst = sorted.at(-1);
  return best === undefined || worst === undefined || best === worst
    ? ''
    : `Nearest to exact: ${best.value}. Furthest: ${worst.value}, at ${shortNumber(worst.klNats / best.klNats)} times its KL.`;
}

function sizeChart(name: string, rows: readonly AblationRow[]): Figure | null {
  const points = rows.flatMap((row) =>
    row.paperRatio === null
      ? []
      : [
          {
            value: valueName(row),
            x: row.paperRatio,
            colour: KEY_COLOUR,
            title: `${row.value}: ${times(row.paperRatio)} times smaller`,
          },
        ],
  );
  if (points.length === 0) return null;
  const label = "times smaller, by the paper's count";
  return {
    ...dotFigure(name, rows, points, { grid: true, ticks: 3, nice: true, inset: 6, label }, []),
    caption:
      'The restored cache is the same, its size is not. Right is better; the axis does not begin at 0. At the right: times smaller, every byte counted.',
  };
}

interface Dot {
  readonly value: string;
  readonly x: number;
  readonly colour: string;
  readonly title: string;
}

function dotFigure(
  name: string,
  rows: readonly AblationRow[],
  dots: readonly Dot[],
  x: Plot.ScaleOptions,
  under: readonly Plot.Markish[],
): Pick<Figure, 'id' | 'title' | 'svg'> {
  const values = [...new Set(rows.map(valueName))];
  const longest = Math.max(...values.map((value) => textWidth(value, FONT_SIZE)));
  const [first] = rows;
  const svg = drawChart(`${name}, by value`, {
    height: 56 + 26 * values.length,
    marginTop: 6,
    marginLeft: Math.min(0.55 * CHART_WIDTH, 14 + longest),
    marginRight: 46,
    x,
    y: { type: 'point', domain: values, label: null, tickSize: 0, padding: 0.7 },
    marks: [
      ...under,
      Plot.dot(dots, { x: 'x', y: 'value', r: 4.5, fill: ({ colour }: Dot) => colour, title: 'title' }),
      Plot.text(rows, {
        y: valueName,
        frameAnchor: 'right',
        textAnchor: 'start',
        dx: 8,
        text: (row: AblationRow) => (row.effectiveRatio === null ? '' : `${times(row.effectiveRatio)}\u00d7`),
        fill: INK,
        fontSize: FONT_SIZE - 1,
      }),
    ],
  });
  const title = first === undefined ? name : `${SET_TITLES[first.set]}, at ${first.atRatio}x`;
  return { id: `ablation-${name.replaceAll(/[^\w]+/gu, '-')}`, title, svg };
}
