// What keeping a cache costs: bytes by part, and time to restore against time to prefill.
// Does not know: quality, errors.

import type { CloseUp, RatioCloseUp, RestoreTimes, TimePoint } from '../close-up.ts';
import type { Figure } from './chart.ts';
import {
  FAINT,
  FONT_SIZE,
  INK,
  KEY_COLOUR,
  Plot,
  RIVAL_COLOUR,
  VALUE_COLOUR,
  decades,
  drawChart,
  octaves,
  shortNumber,
} from './chart.ts';

const PART_COLOURS: Readonly<Record<string, string>> = {
  keys: KEY_COLOUR,
  values: VALUE_COLOUR,
  sinks: INK,
  window: RIVAL_COLOUR,
};
const partColour = (name: string): string => PART_COLOURS[name] ?? FAINT;
const PART_NAMES: Readonly<Record<string, string>> = {
  keys: 'coded keys',
  values: 'coded values',
  sinks: 'sinks, exact',
  window: 'window, exact',
};

export function bytesChart({ ratios, document }: CloseUp): Figure {
  const parts = ratios.flatMap(({ ratio, parts: found }) =>
    found.map(({ name, byteLength }) => ({ ratio: `${ratio}x`, name, megabytes: byteLength / 1e6 })),
  );
  const totals = ratios.map((one) => ({
    ratio: `${one.ratio}x`,
    megabytes: bytesOf(one) / 1e6,
    times: one.effectiveRatio,
  }));
  const most = Math.max(...totals.map(({ megabytes }) => megabytes));
  const svg = drawChart('Bytes of a container by part', {
    height: 70 + 34 * ratios.length,
    marginLeft: 40,
    marginRight: 52,
    x: { domain: [0, most], label: 'MB', ticks: 5, grid: true },
    y: { type: 'band', domain: ratios.map(({ ratio }) => `${ratio}x`), label: null, tickSize: 0, padding: 0.25 },
    marks: [
      Plot.barX(parts, {
        x: 'megabytes',
        y: 'ratio',
        fill: ({ name }: (typeof parts)[number]) => partColour(name),
        order: null,
        title: ({ name, megabytes }: (typeof parts)[number]) =>
          `${PART_NAMES[name] ?? name}: ${megabytes.toPrecision(3)} MB`,
      }),
      Plot.text(totals, {
        x: 'megabytes',
        y: 'ratio',
        text: ({ times }: (typeof totals)[number]) => `${times.toFixed(1)}x`,
        textAnchor: 'start',
        dx: 5,
        fill: INK,
        fontSize: FONT_SIZE - 1,
      }),
    ],
  });
  const names = [...new Set(parts.map(({ name }) => name))];
  return {
    id: 'bytes',
    svg,
    caption: `Bytes of the file for ${document.tokens} tokens, by part and target ratio; at the end of each bar, how many times smaller the file is than the cache.`,
    legend: names.map((name) => ({ colour: partColour(name), label: PART_NAMES[name] ?? name })),
  };
}

export function bytesOf({ parts }: RatioCloseUp): number {
  return parts.reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/** Least-squares line through measured restores: a fixed part and a part by token. */
export function fitRestore(restore: readonly TimePoint[]): { readonly fixedMs: number; readonly tokenMs: number } {
  const n = restore.length;
  const meanX = restore.reduce((sum, { tokens }) => sum + tokens, 0) / n;
  const meanY = restore.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / n;
  const spread = restore.reduce((sum, { tokens }) => sum + (tokens - meanX) ** 2, 0);
  if (spread === 0) return { fixedMs: 0, tokenMs: meanY / meanX };
  const slope =
    restore.reduce((sum, { tokens, elapsedMs }) => sum + (tokens - meanX) * (elapsedMs - meanY), 0) / spread;
  return { fixedMs: Math.max(0, meanY - slope * meanX), tokenMs: slope };
}

/** Prefill time of a length, between measured points in straight lines, from nothing at 0. */
export function prefillMs(prefill: readonly TimePoint[], tokens: number): number {
  const points = [{ tokens: 0, elapsedMs: 0 }, ...prefill];
  const next = Math.max(
    1,
    points.findIndex((point) => point.tokens >= tokens),
  );
  const from = points[next - 1] ?? { tokens: 0, elapsedMs: 0 };
  const to = points[next] ?? from;
  return from.elapsedMs + ((to.elapsedMs - from.elapsedMs) * (tokens - from.tokens)) / (to.tokens - from.tokens);
}

/** Shortest prefix that a fresh process restores faster than it prefills, loading bases included; null if none is. */
export function breakEvenTokens({ prefill, restore, loadBasesMs }: RestoreTimes): number | null {
  const longest = prefill.at(-1)?.tokens ?? 0;
  const { fixedMs, tokenMs } = fitRestore(restore);
  for (let tokens = 1; tokens <= longest; tokens++) {
    if (prefillMs(prefill, tokens) >= loadBasesMs + fixedMs + tokenMs * tokens) return tokens;
  }
  return null;
}

export function timesChart(times: RestoreTimes): Figure {
  const longest = times.prefill.at(-1)?.tokens ?? 1;
  const even = breakEvenTokens(times);
  const shortest = Math.max(1, Math.min(even ?? longest, times.restore[0]?.tokens ?? longest, longest / 8) / 1.6);
  const { fixedMs, tokenMs } = fitRestore(times.restore);
  const lengths = Array.from({ length: 40 }, (_, i) => shortest * (longest / shortest) ** (i / 39));
  const curves = [
    { name: 'prefill', colour: RIVAL_COLOUR, dash: 'none', at: (tokens: number) => prefillMs(times.prefill, tokens) },
    { name: 'restore', colour: KEY_COLOUR, dash: 'none', at: (tokens: number) => fixedMs + tokenMs * tokens },
    {
      name: 'restore in a fresh process, loading bases first',
      colour: KEY_COLOUR,
      dash: '4 3',
      at: (tokens: number) => times.loadBasesMs + fixedMs + tokenMs * tokens,
    },
  ];
  const seconds = curves.map((curve) => lengths.map((tokens) => ({ tokens, seconds: curve.at(tokens) / 1000 })));
  const all = seconds.flat().map((point) => point.seconds);
  const domain = [Math.min(...all.filter((value) => value > 0)) / 1.3, Math.max(...all) * 1.3] as const;
  const dots = [
    ...times.prefill.map((point) => ({ ...point, colour: RIVAL_COLOUR, what: 'prefill' })),
    ...times.restore.map((point) => ({ ...point, colour: KEY_COLOUR, what: 'restore' })),
  ].filter(({ tokens }) => tokens >= shortest);
  const svg = drawChart('Time to restore against time to prefill, by length', {
    x: {
      type: 'log',
      domain: [shortest, longest * 1.05],
      ticks: octaves([shortest, longest]),
      tickFormat: shortNumber,
      label: 'tokens',
    },
    y: { type: 'log', domain, ticks: decades(domain), tickFormat: shortNumber, grid: true, label: 'seconds' },
    marks: [
      ...(even === null || even < shortest
        ? []
        : [
            Plot.ruleX([even], { stroke: INK, strokeOpacity: 0.5 }),
            Plot.text([even], {
              x: even,
              frameAnchor: 'bottom',
              text: (tokens: number) => `break-even: ${tokens} tokens`,
              textAnchor: 'start',
              dx: 5,
              dy: -4,
              fill: INK,
              fontSize: FONT_SIZE - 1,
            }),
          ]),
      ...curves.map(({ colour, dash }, i) =>
        Plot.line(seconds[i] ?? [], {
          x: 'tokens',
          y: 'seconds',
          stroke: colour,
          strokeWidth: dash === 'none' ? 2 : 1.5,
          strokeDasharray: dash,
        }),
      ),
      Plot.dot(dots, {
        x: 'tokens',
        y: ({ elapsedMs }: TimePoint) => elapsedMs / 1000,
        r: 3,
        fill: ({ colour }: (typeof dots)[number]) => colour,
        title: ({ what, tokens, elapsedMs }: (typeof dots)[number]) =>
          `${what} of ${tokens} tokens: ${(elapsedMs / 1000).toPrecision(3)} s`,
      }),
    ],
  });
  return {
    id: 'times',
    svg,
    caption: `Seconds by length at ${times.ratio}x, both axes logarithmic; dots are measured, lines drawn through them. Dashed: a fresh process, which loads the bases first.`,
    legend: [
      { colour: RIVAL_COLOUR, label: 'prefill' },
      { colour: KEY_COLOUR, label: 'restore' },
    ],
  };
}
