// Where a restored cache is wrong: by layer and KV head, and along the prefix. Does not know: quality, bytes, times.

import type { StreamKind } from '../../base/geometry.ts';
import type { RatioCloseUp } from '../close-up.ts';
import type { Figure } from './chart.ts';
import { BAND, CHART_HEIGHT, FONT_SIZE, HEAT, INK, Plot, drawChart, ratioLabels, shortNumber } from './chart.ts';

const STREAM_NAMES: Readonly<Record<StreamKind, string>> = { key: 'keys', value: 'values' };

/** Cells of a heat map: relative squared error in percent. */
function headCells(closeUp: RatioCloseUp, stream: StreamKind): { layer: number; head: number; error: number }[] {
  return closeUp.errors[stream].byHead.flatMap((heads, layer) =>
    heads.map((error, head) => ({ layer, head, error: 100 * error })),
  );
}

/** Limits between the seven colours, shared by keys and values so that they compare: equal steps of the logarithm. */
function heatLimits(closeUp: RatioCloseUp): number[] {
  const errors = [...headCells(closeUp, 'key'), ...headCells(closeUp, 'value')]
    .map(({ error }) => error)
    .filter((error) => error > 0);
  const low = Math.min(...errors, 100);
  const high = Math.max(...errors, low * 1.01);
  return Array.from({ length: HEAT.length - 1 }, (_, i) => low * (high / low) ** ((i + 1) / HEAT.length));
}

export function headChart(closeUp: RatioCloseUp, stream: StreamKind): Figure {
  const cells = headCells(closeUp, stream);
  const limits = heatLimits(closeUp);
  const errors = cells.map(({ error }) => error).toSorted((a, b) => a - b);
  const layers = closeUp.errors[stream].byHead.length;
  const heads = closeUp.errors[stream].byHead[0]?.length ?? 0;
  const every = Math.ceil(layers / 8);
  const svg = drawChart(`Error of the ${STREAM_NAMES[stream]} by layer and KV head at ${closeUp.ratio}x`, {
    height: 52 + Math.min(30, Math.max(8, 240 / heads)) * heads,
    marginTop: 6,
    marginLeft: 40,
    x: {
      type: 'band',
      domain: Array.from({ length: layers }, (_, i) => i),
      ticks: Array.from({ length: layers }, (_, i) => i).filter((i) => i % every === 0),
      tickSize: 0,
      label: 'layer',
      labelOffset: 34,
      padding: 0.06,
    },
    y: {
      type: 'band',
      domain: Array.from({ length: heads }, (_, i) => i),
      ticks: Array.from({ length: heads }, (_, i) => i).filter((i) => i % Math.ceil(heads / 8) === 0),
      tickSize: 0,
      label: 'KV head',
      padding: 0.06,
    },
    marks: [
      Plot.cell(cells, {
        x: 'layer',
        y: 'head',
        fill: ({ error }: (typeof cells)[number]) => HEAT[limits.filter((limit) => error >= limit).length] ?? INK,
        title: ({ layer, head, error }: (typeof cells)[number]) =>
          `layer ${layer}, head ${head}: ${error.toPrecision(3)} %`,
      }),
    ],
  });
  const bound = (i: number): string => shortNumber(limits[i] ?? 0);
  const label = (i: number): string => {
    if (i === 0) return `< ${bound(0)} %`;
    return i === HEAT.length - 1 ? `≥ ${bound(i - 1)} %` : `${bound(i - 1)}–${bound(i)}`;
  };
  return {
    id: `heads-${stream}-${closeUp.ratio}`,
    title: `Error of the ${STREAM_NAMES[stream]} at ${closeUp.ratio}x`,
    svg,
    caption: `Relative squared error of every layer and KV head, ${shortNumber(errors[0] ?? 0)} to ${shortNumber(errors.at(-1) ?? 0)}\u00a0%, half of them below ${shortNumber(errors[errors.length >> 1] ?? 0)}\u00a0%. Keys and values share the colours.`,
    legend: HEAT.map((colour, i) => ({ colour, label: label(i) })),
  };
}

/** Error along the prefix, a line a ratio, labelled at its end. */
export function positionChart(ratios: readonly RatioCloseUp[], stream: StreamKind): Figure {
  // Where nothing is coded there is no line.
  const points = ratios.flatMap(({ ratio, errors }) =>
    errors[stream].byPosition
      .filter(({ error }) => error > 0)
      .map(({ startToken, endToken, error }) => ({
        ratio,
        token: (startToken + endToken - 1) / 2,
        error: 100 * error,
      })),
  );
  const shades = (ratio: number): string =>
    HEAT[3 + Math.round((3 * ratios.findIndex((one) => one.ratio === ratio)) / Math.max(1, ratios.length - 1))] ?? INK;
  const most = Math.max(...points.map(({ error }) => error), 1e-9);
  const bins = ratios[0]?.errors[stream].byPosition ?? [];
  const longest = bins.at(-1)?.endToken ?? 1;
  const exactFrom = bins.findLast(({ error }) => error > 0)?.endToken ?? longest;
  const ends = ratios.map(({ ratio }) => {
    const coded = points.filter((point) => point.ratio === ratio);
    return { ratio, error: coded.at(-1)?.error ?? 0 };
  });
  // Labels stand at the lines' ends, pushed up where they would touch.
  const height = CHART_HEIGHT - 26 - 38;
  const top = most * 1.12;
  let below = -Infinity;
  const labels = ends
    .toSorted((a, b) => a.error - b.error)
    .map(({ ratio, error }) => {
      below = Math.max(error, below + (top * FONT_SIZE) / height);
      return { ratio, error: below };
    });
  const svg = drawChart(`Error of the ${STREAM_NAMES[stream]} along the prefix`, {
    marginLeft: 44,
    marginRight: 40,
    x: {
      domain: [0, longest],
      label: 'token',
      ticks: 5,
      tickFormat: shortNumber,
    },
    y: { domain: [0, top], grid: true, label: 'relative squared error, %', ticks: 5 },
    marks: [
      ...exactBand(exactFrom, longest, top),
      Plot.line(points, {
        x: 'token',
        y: 'error',
        z: 'ratio',
        stroke: ({ ratio }: (typeof points)[number]) => shades(ratio),
        strokeWidth: 1.6,
        curve: 'step',
      }),
      ratioLabels(labels, () => longest, 'error'),
    ],
  });
  return {
    id: `positions-${stream}`,
    title: `Error of the ${STREAM_NAMES[stream]} along the prefix`,
    svg,
    caption: `Relative squared error by position, a line a ratio.${driftText(ratios, stream)}${exactFrom === longest ? '' : ' The band is the window, kept exact.'}`,
  };
}

/** The newest tokens, where they are kept exact. */
function exactBand(from: number, to: number, top: number): Plot.Markish[] {
  return from >= to
    ? []
    : [
        Plot.rect([0], { x1: from, x2: to, y1: 0, y2: top, fill: BAND }),
        Plot.text([0], {
          x: (from + to) / 2,
          y: top / 2,
          text: () => 'exact',
          rotate: -90,
          fill: INK,
          fillOpacity: 0.7,
          fontSize: FONT_SIZE - 1,
        }),
      ];
}

/** Whether later tokens fare worse: the last quarter of the coded ones against the first. */
function driftText(ratios: readonly RatioCloseUp[], stream: StreamKind): string {
  const main = ratios[Math.floor((ratios.length - 1) / 2)];
  const coded = main?.errors[stream].byPosition.filter(({ error }) => error > 0) ?? [];
  const quarter = Math.floor(coded.length / 4);
  if (main === undefined || quarter === 0) return '';
  const mean = (bins: typeof coded): number => bins.reduce((sum, { error }) => sum + error, 0) / bins.length;
  const drift = mean(coded.slice(-quarter)) / mean(coded.slice(0, quarter));
  return ` At ${main.ratio}x the last quarter of the coded tokens has ${drift.toFixed(2)} times the error of the first.`;
}

/** The layer and head with the largest error. */
export function worstHead(closeUp: RatioCloseUp, stream: StreamKind): { layer: number; head: number; error: number } {
  return headCells(closeUp, stream).reduce((a, b) => (b.error > a.error ? b : a));
}
