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
  'One setting varied at a time, all others at their defaults, on the same documents. Further right is worse; the band is the noise of the engine itself. Settings that change the size as well are told apart by the table.';

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

function ablationChart(name: string, rows: readonly AblationRow[], floor: EvaluationRow): Figure | null {
  const points = rows.flatMap(({ value, klNats, copyKlNats }) => [
    { value: `${value}`, loss: klNats, colour: KEY_COLOUR },
    { value: `${value}`, loss: copyKlNats, colour: VALUE_COLOUR },
  ]);
  const drawn = points.filter(({ loss }) => loss > 0 && Number.isFinite(loss));
  if (drawn.length === 0) return null;
  const losses = drawn.map(({ loss }) => loss);
  const noise = floor.klNats > 0 ? floor.klNats : Math.min(...losses);
  const domain = [Math.min(noise, ...losses) / 1.5, Math.max(...losses) * 1.5] as const;
  const values = [...new Set(rows.map(({ value }) => `${value}`))];
  const longest = Math.max(...values.map(({ length }) => length));
  const svg = drawChart(`KL by ${name}`, {
    height: 56 + 26 * values.length,
    marginTop: 6,
    marginLeft: Math.min(CHART_WIDTH / 2, 18 + 7 * longest),
    x: { type: 'log', domain, ticks: decades(domain), tickFormat: shortNumber, grid: true, label: 'KL, nats' },
    y: { type: 'point', domain: values, label: null, tickSize: 0, padding: 0.7 },
    marks: [
      ...(floor.klNats > 0 ? [Plot.rect([0], { x1: domain[0], x2: floor.klNats, fill: BAND })] : []),
      Plot.dot(drawn, {
        x: 'loss',
        y: 'value',
        r: 4.5,
        fill: ({ colour }: (typeof drawn)[number]) => colour,
        title: ({ value, loss }: (typeof drawn)[number]) => `${value}: ${loss.toPrecision(3)} nats`,
      }),
    ],
  });
  return {
    id: `ablation-${name.replaceAll(/[^\w]+/gu, '-')}`,
    title: name,
    svg,
    caption: 'KL by value of the setting, nats, on a logarithmic axis. Left is better.',
    legend: [
      { colour: KEY_COLOUR, label: 'prediction' },
      { colour: VALUE_COLOUR, label: 'copying' },
    ],
  };
}
