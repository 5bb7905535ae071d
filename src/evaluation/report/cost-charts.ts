// What keeping a cache costs: bytes by part, and time to restore against time to prefill.
// Does not know: quality, errors.

import type { CloseUp, RatioCloseUp } from '../close-up.ts';
import type { RestoreTimes, TimePoint } from '../restore-times.ts';
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
  ratioLabels,
  shortNumber,
  wholeNumber,
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
    height: 50 + 34 * ratios.length,
    marginTop: 6,
    marginLeft: 40,
    marginRight: 84,
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
        text: ({ ratio, times }: (typeof totals)[number]) =>
          ratio === `${ratios[0]?.ratio}x` ? `${times.toFixed(1)}× smaller` : `${times.toFixed(1)}×`,
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
    title: 'Bytes by part',
    svg,
    caption: `The file for ${wholeNumber(document.tokens)} tokens at each ratio asked for, in MB; beside each bar, how many times smaller than the cache it is, every byte counted.`,
    legend: names.map((name) => ({ colour: partColour(name), label: PART_NAMES[name] ?? name })),
  };
}

export function bytesOf({ parts }: RatioCloseUp): number {
  return parts.reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/**
 * How many times smaller files of other lengths are, if further tokens cost what these cost: the parts kept exact stay,
 * all else grows with the tokens.
 */
export function effectiveRatioAt(
  one: RatioCloseUp,
  document: CloseUp['document'],
  exactTokens: number,
  tokens: number,
): number {
  const bytes = (of: (name: string) => boolean): number =>
    one.parts.filter(({ name }) => of(name)).reduce((sum, { byteLength }) => sum + byteLength, 0);
  const coded = bytes((name) => name === 'keys' || name === 'values') / Math.max(1, document.tokens - exactTokens);
  const other = bytes((name) => !(name in PART_NAMES)) / document.tokens;
  const exact = bytes((name) => name === 'sinks' || name === 'window');
  const file = exact + coded * Math.max(0, tokens - exactTokens) + other * tokens;
  return ((one.rawBytes / document.tokens) * tokens) / file;
}

/** The size of files against the length of the context. */
export function lengthChart({ ratios, document, times }: CloseUp): Figure {
  const shortest = document.tokens / 2;
  const longest = document.tokens * 64;
  const points = ratios.flatMap((one) =>
    Array.from({ length: 49 }, (_, i) => {
      const tokens = shortest * (longest / shortest) ** (i / 48);
      return { ratio: one.ratio, tokens, smaller: effectiveRatioAt(one, document, times.exactTokens, tokens) };
    }),
  );
  const all = points.map(({ smaller }) => smaller);
  const domain = [Math.min(...all) / 1.2, Math.max(...all) * 1.2] as const;
  const ends = points.filter(({ tokens }) => tokens >= longest * 0.999);
  const svg = drawChart('Times smaller by length, every byte counted', {
    marginRight: 44,
    x: {
      type: 'log',
      base: 2,
      domain: [shortest, longest],
      ticks: octaves([shortest, longest]).filter((_, i) => i % 2 === 0),
      tickFormat: shortNumber,
      label: 'tokens',
    },
    y: {
      type: 'log',
      base: 2,
      domain,
      ticks: octaves(domain),
      tickFormat: shortNumber,
      grid: true,
      label: 'times smaller, every byte counted',
    },
    marks: [
      Plot.ruleX([document.tokens], { stroke: FAINT, strokeDasharray: '3 3' }),
      Plot.line(points, { x: 'tokens', y: 'smaller', z: 'ratio', stroke: KEY_COLOUR, strokeWidth: 1.8 }),
      Plot.dot(ratios, {
        x: () => document.tokens,
        y: 'effectiveRatio',
        r: 3.5,
        fill: KEY_COLOUR,
        title: (one: RatioCloseUp) =>
          `${one.ratio}x at ${document.tokens} tokens: ${one.effectiveRatio.toFixed(2)} times smaller`,
      }),
      ratioLabels(ends, 'tokens', 'smaller'),
    ],
  });
  return {
    id: 'lengths',
    title: 'Size by length',
    svg,
    caption: `Dots: measured at ${wholeNumber(document.tokens)} tokens. Lines: computed for other lengths, where each further token costs what these cost. What is kept exact weighs less and less.`,
  };
}

/**
 * Least-squares line through measured restores: a fixed part and a part by coded token. Exact tokens are only copied.
 */
export function fitRestore({ restore, exactTokens }: RestoreTimes): RestoreFit {
  const points = restore.map(({ tokens, elapsedMs }) => ({ x: tokens - exactTokens, y: elapsedMs }));
  const meanOf = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanX = meanOf(points.map(({ x }) => x));
  const meanY = meanOf(points.map(({ y }) => y));
  const spread = points.reduce((sum, { x }) => sum + (x - meanX) ** 2, 0);
  const together = points.reduce((sum, { x, y }) => sum + (x - meanX) * (y - meanY), 0);
  const tokenMs = spread === 0 ? meanY / meanX : together / spread;
  const fixedMs = Math.max(0, meanY - tokenMs * meanX);
  return { restoreMs: (tokens) => fixedMs + tokenMs * Math.max(0, tokens - exactTokens) };
}

interface RestoreFit {
  /** At a length in tokens, bases loaded. */
  readonly restoreMs: (tokens: number) => number;
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

/**
 * Shortest prefix with anything coded that a fresh process restores faster than it prefills, loading bases included;
 * null if none is. Not above `exactTokens` + 1 means: every length.
 */
export function breakEvenTokens(times: RestoreTimes): number | null {
  const { prefill, loadBasesMs, exactTokens } = times;
  const longest = prefill.at(-1)?.tokens ?? 0;
  const { restoreMs } = fitRestore(times);
  for (let tokens = exactTokens + 1; tokens <= longest; tokens++) {
    if (prefillMs(prefill, tokens) >= loadBasesMs + restoreMs(tokens)) return tokens;
  }
  return null;
}

export function timesChart(times: RestoreTimes): Figure {
  const longest = times.prefill.at(-1)?.tokens ?? 1;
  const even = breakEvenTokens(times);
  const shortest = Math.min(times.exactTokens + 16, longest / 2);
  const { restoreMs } = fitRestore(times);
  const lengths = Array.from({ length: 60 }, (_, i) => shortest * (longest / shortest) ** (i / 59));
  const curves = [
    { colour: RIVAL_COLOUR, dash: 'none', at: (tokens: number) => prefillMs(times.prefill, tokens) },
    { colour: KEY_COLOUR, dash: 'none', at: restoreMs },
    {
      colour: KEY_COLOUR,
      dash: '4 3',
      at: (tokens: number) => times.loadBasesMs + restoreMs(tokens),
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
      base: 2,
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
              // Towards the middle, where there is room for it.
              ...(even > Math.sqrt(shortest * longest)
                ? { textAnchor: 'end', dx: -5 }
                : { textAnchor: 'start', dx: 5 }),
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
    title: 'Restore and prefill',
    svg,
    caption: `Seconds by length at ${times.ratio}x, both axes logarithmic; dots are measured, lines drawn through them. Where a blue line lies below the grey one, keeping a cache saves time.`,
    legend: [
      { colour: RIVAL_COLOUR, label: 'prefill' },
      { colour: KEY_COLOUR, label: 'restore, bases loaded (dashed: a fresh process loads them first)' },
    ],
  };
}
