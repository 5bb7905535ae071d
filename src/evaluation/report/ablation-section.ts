// The ablations' section: for every setting that was varied, what each value costs. Does not know: how variants are made.

import type { AblationRow } from '../ablation/ablate.ts';
import type { EvaluationRow } from '../summary.ts';
import type { Figure } from './chart.ts';
import { BAND, CHART_WIDTH, KEY_COLOUR, Plot, VALUE_COLOUR, decades, drawChart, shortNumber } from './chart.ts';
import { chartsHtml, sectionHtml, tableHtml } from './html.ts';
import { nats, percent, times } from './words.ts';

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
  const lines = rows.map((row) => [
    `${row.set} ${row.value}, at ${row.atRatio}x`,
    times(row.paperRatio),
    times(row.effectiveRatio),
    nats(row.klNats),
    nats(row.copyKlNats),
    percent(row.top1Agreement),
    row.perplexityRestored.toFixed(3),
    `${row.documents}`,
  ]);
  const heading = ['', 'paper ratio', 'every byte', 'KL', 'copy KL', 'top-1', 'perplexity', 'documents'];
  return sectionHtml('ablations', titleOf(groups), TEXT, chartsHtml(charts) + tableHtml(heading, lines));
}

const TEXT =
  'One setting varied at a time, all others at their defaults, on the same documents. The band is the noise of the engine itself. Many settings change the size as well: the table has both.';

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
  const points = rows.flatMap(({ value, klNats, copyKlNats }) => [
    { value: `${value}`, x: klNats, colour: KEY_COLOUR, title: `${value}: ${nats(klNats)} nats` },
    {
      value: `${value}`,
      x: copyKlNats,
      colour: VALUE_COLOUR,
      title: `${value}: ${nats(copyKlNats)} nats when copying`,
    },
  ]);
  const drawn = points.filter(({ x }) => x > 0 && Number.isFinite(x));
  if (drawn.length === 0) return null;
  const most = Math.max(...drawn.map(({ x }) => x));
  const least = Math.min(...drawn.map(({ x }) => x), floor.klNats > 0 ? floor.klNats : most);
  const domain = [least / 1.5, most * 1.5] as const;
  const x = {
    type: 'log',
    domain,
    ticks: decades(domain),
    tickFormat: shortNumber,
    grid: true,
    label: 'KL, nats',
  } as const;
  const band = floor.klNats > 0 ? [Plot.rect([0], { x1: domain[0], x2: floor.klNats, fill: BAND })] : [];
  return {
    ...dotFigure(name, rows, drawn, x, band),
    caption: 'KL by value of the setting, nats, on a logarithmic axis. Left is better.',
    legend: [
      { colour: KEY_COLOUR, label: 'prediction' },
      { colour: VALUE_COLOUR, label: 'copying' },
    ],
  };
}

function sizeChart(name: string, rows: readonly AblationRow[]): Figure | null {
  const points = rows.flatMap(({ value, paperRatio }) =>
    paperRatio === null
      ? []
      : [
          {
            value: `${value}`,
            x: paperRatio,
            colour: KEY_COLOUR,
            title: `${value}: ${times(paperRatio)} times smaller`,
          },
        ],
  );
  if (points.length === 0) return null;
  const label = "times smaller, by the paper's count";
  return {
    ...dotFigure(name, rows, points, { grid: true, ticks: 3, nice: true, inset: 6, label }, []),
    caption: 'The restored cache is the same, its size is not. Right is better; the axis does not begin at 0.',
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
  const values = [...new Set(rows.map(({ value }) => `${value}`))];
  const longest = Math.max(...values.map(({ length }) => length));
  const svg = drawChart(`${name}, by value`, {
    height: 56 + 26 * values.length,
    marginTop: 6,
    marginLeft: Math.min(CHART_WIDTH / 2, 18 + 7 * longest),
    x,
    y: { type: 'point', domain: values, label: null, tickSize: 0, padding: 0.7 },
    marks: [
      ...under,
      Plot.dot(dots, { x: 'x', y: 'value', r: 4.5, fill: ({ colour }: Dot) => colour, title: 'title' }),
    ],
  });
  return { id: `ablation-${name.replaceAll(/[^\w]+/gu, '-')}`, title: name, svg };
}
