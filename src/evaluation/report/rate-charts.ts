// Rate against loss: KVTC as a line over its ratios, rivals as points, the engine's own noise as a band; and the
// sentences that sum it up. Does not know: profiles, rows, how the page is laid out.

import type { EvaluationRow } from '../summary.ts';
import type { Figure } from './chart.ts';
import {
  BAND,
  CHART_HEIGHT,
  CHART_WIDTH,
  FONT_SIZE,
  INK,
  KEY_COLOUR,
  PAPER,
  Plot,
  RIVAL_COLOUR,
  decades,
  drawChart,
  octaves,
  shortNumber,
} from './chart.ts';
import { placeLabels } from './labels.ts';

export type Measure = 'klNats' | 'copyKlNats';
export type Rate = 'effectiveRatio' | 'paperRatio';

const FRAME = { left: 50, right: CHART_WIDTH - 6, top: 26, bottom: CHART_HEIGHT - 40 };

export const MEASURE_NAMES: Readonly<Record<Measure, string>> = {
  klNats: 'KL of the next token, nats',
  copyKlNats: 'KL when copying, nats',
};
const RATE_NAMES: Readonly<Record<Rate, string>> = {
  effectiveRatio: 'times smaller, every byte counted',
  paperRatio: "times smaller, by the paper's count",
};

/** A KVTC row at default settings: `kvtc 16x`. Such rows make the line. */
export function isPlainKvtc(row: EvaluationRow): boolean {
  return /^kvtc [\d.]+x$/u.test(row.treatment);
}

/** What a point is called in a chart. */
function pointName(row: EvaluationRow): string {
  return isPlainKvtc(row) ? `${row.ratio}x` : row.treatment;
}

/** Null when no row has the rate. */
export function rateChart(
  id: string,
  rows: readonly EvaluationRow[],
  floor: EvaluationRow,
  measure: Measure,
  rate: Rate,
): Figure | null {
  const points = rows.flatMap((row) => {
    const ratio = row[rate];
    return ratio === null ? [] : [{ row, ratio, loss: row[measure], plain: isPlainKvtc(row) }];
  });
  if (points.length === 0) return null;
  const positive = [...points.map(({ loss }) => loss), floor[measure]].filter((loss) => loss > 0);
  const bottom = floor[measure] > 0 ? floor[measure] / 2 : Math.min(...positive, 1) / 2;
  const yDomain = [bottom, Math.max(...positive, bottom * 10) * 1.7] as const;
  const ratios = points.map(({ ratio }) => ratio);
  const xDomain = [Math.min(...ratios) / 1.25, Math.max(...ratios) * 1.3] as const;
  const drawn = points.map((point) => ({ ...point, y: Math.max(point.loss, bottom) }));
  const place = ({ ratio, y }: { ratio: number; y: number }): { x: number; y: number } => ({
    x: FRAME.left + (FRAME.right - FRAME.left) * logShare(ratio, xDomain),
    y: FRAME.bottom - (FRAME.bottom - FRAME.top) * logShare(y, yDomain),
  });
  const line = drawn.filter(({ plain }) => plain).toSorted((a, b) => a.ratio - b.ratio);
  const labels = placeLabels(
    [...line, ...drawn.filter(({ plain }) => !plain)].map((point) => ({
      ...place(point),
      label: pointName(point.row),
    })),
    FRAME,
    alongLine(line.map(place)),
    FONT_SIZE - 1,
  );
  const svg = drawChart(`${MEASURE_NAMES[measure]} against size: ${RATE_NAMES[rate]}`, {
    marginLeft: FRAME.left,
    marginRight: CHART_WIDTH - FRAME.right,
    marginTop: FRAME.top,
    marginBottom: CHART_HEIGHT - FRAME.bottom,
    x: { type: 'log', domain: xDomain, ticks: octaves(xDomain), tickFormat: shortNumber, label: RATE_NAMES[rate] },
    y: {
      type: 'log',
      domain: yDomain,
      ticks: decades(yDomain),
      tickFormat: shortNumber,
      grid: true,
      label: MEASURE_NAMES[measure],
    },
    marks: [
      ...(floor[measure] > 0
        ? [
            Plot.rect([0], { x1: xDomain[0], x2: xDomain[1], y1: bottom, y2: floor[measure], fill: BAND }),
            Plot.text([0], {
              x: xDomain[1],
              y: Math.sqrt(bottom * floor[measure]),
              text: () => "the engine's own noise",
              textAnchor: 'end',
              dx: -4,
              fill: INK,
              fillOpacity: 0.7,
              fontSize: FONT_SIZE - 1,
            }),
          ]
        : []),
      Plot.line(line, { x: 'ratio', y: 'y', stroke: KEY_COLOUR, strokeWidth: 2 }),
      Plot.dot(drawn, {
        x: 'ratio',
        y: 'y',
        r: 4,
        fill: ({ plain }: (typeof drawn)[number]) => (plain ? KEY_COLOUR : RIVAL_COLOUR),
        stroke: PAPER,
        title: ({ row, ratio, loss }: (typeof drawn)[number]) =>
          `${row.treatment}: ${ratio.toFixed(2)} times smaller, ${loss.toPrecision(3)} nats`,
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
  return {
    id,
    svg,
    caption: `${MEASURE_NAMES[measure]} (down is better) against ${RATE_NAMES[rate]} (right is better).`,
  };
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
  const rivals = rows.filter((row) => !row.treatment.startsWith('kvtc') && row.effectiveRatio !== null);
  const dominates = (a: EvaluationRow, b: EvaluationRow): boolean =>
    (a.effectiveRatio ?? 0) >= (b.effectiveRatio ?? 0) && a[measure] <= b[measure];
  const beaten = rivals.filter((rival) => kvtc.some((row) => dominates(row, rival)));
  const beating = rivals.filter((rival) => kvtc.some((row) => dominates(rival, row)));
  const apart = rivals.filter((rival) => !beaten.includes(rival) && !beating.includes(rival));
  const names = (list: readonly EvaluationRow[]): string[] => list.map(({ treatment }) => treatment);
  return { beaten: names(beaten), beating: names(beating), apart: names(apart) };
}

/** The plain KVTC row nearest the paper's 16x, or the first row. */
export function mainRow(rows: readonly EvaluationRow[]): EvaluationRow | undefined {
  const distance = (row: EvaluationRow): number => Math.abs(Math.log2((row.ratio ?? 1) / 16));
  return rows.filter(isPlainKvtc).toSorted((a, b) => distance(a) - distance(b))[0] ?? rows[0];
}
