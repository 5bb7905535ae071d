// Charts as SVG text: one size, one look, colours by CSS variables so that the page decides light or dark.
// Drawn on the server by Observable Plot over a small DOM: a page needs no script. Does not know what is drawn.

import { parseHTML } from 'linkedom';
import * as Plot from '@observablehq/plot';
import { powerOfTen } from './words.ts';

export { Plot };

/** Drawing units; a phone shows them nearly one to one, a desk a little larger. */
export const CHART_WIDTH = 380;
export const CHART_HEIGHT = 260;
export const FONT_SIZE = 12;

/** CSS variables of page-style.ts. */
export const INK = 'var(--ink)';
export const FAINT = 'var(--faint)';
export const BAND = 'var(--band)';
export const PAPER = 'var(--paper)';
export const KEY_COLOUR = 'var(--key)';
export const VALUE_COLOUR = 'var(--value)';
export const RIVAL_COLOUR = 'var(--rival)';
/** Of lines side by side. */
export const SERIES_COLOURS = [KEY_COLOUR, VALUE_COLOUR, 'var(--third)', 'var(--fourth)'];
/** From little to much. */
export const HEAT = Array.from({ length: 7 }, (_, i) => `var(--heat-${i})`);

/** A drawn chart with what it shows. */
export interface Figure {
  /** Unique on the page. */
  readonly id: string;
  /** A few words above the chart. */
  readonly title: string;
  /** What is drawn and in which units; plain text. */
  readonly caption: string;
  readonly svg: string;
  /** Colour and meaning, where labels in the chart do not say it. */
  readonly legend?: readonly { readonly colour: string; readonly label: string }[];
}

/**
 * Draws a Plot chart at the common size and returns it as `<svg>` text, labelled for screen readers. `options` are Plot's;
 * margins and font size have defaults here.
 */
export function drawChart(label: string, options: Plot.PlotOptions): string {
  const { document } = parseHTML('<!doctype html><html><body></body></html>');
  const svg: { outerHTML: string } = Plot.plot({
    width: CHART_WIDTH,
    height: CHART_HEIGHT,
    marginLeft: 48,
    marginRight: 16,
    marginTop: 26,
    marginBottom: 38,
    className: 'chart',
    ...options,
    document: document as never,
    ariaLabel: label,
    style: { fontSize: `${FONT_SIZE}px` },
  });
  return svg.outerHTML.replace('<svg ', '<svg role="img" ').replace(/<style>.*?<\/style>/su, '');
}

/** Names a line a ratio at its right end. */
export function ratioLabels(
  ends: readonly { readonly ratio: number }[],
  x: Plot.ChannelValue,
  y: string,
): Plot.Markish {
  return Plot.text(ends, {
    x,
    y,
    text: ({ ratio }: { readonly ratio: number }) => `${ratio}x`,
    textAnchor: 'start',
    dx: 6,
    fill: INK,
    fontSize: FONT_SIZE - 1,
  });
}

/** 0.0123 → `0.012`, 480.2 → `480`, 12345 → `12 345`, 0.00001 → `10⁻⁵`: two digits, or all of a whole part. */
export function shortNumber(value: number): string {
  if (value === 0) return '0';
  if (Math.abs(value) >= 100) return wholeNumber(value);
  if (Math.abs(value) < 1e-4) return powerOfTen(value, 0);
  return `${Number(value.toPrecision(2))}`;
}

/** 12345.6 → `12 346`, parted by spaces that do not break. */
export function wholeNumber(value: number): string {
  return Math.round(value).toLocaleString('en-GB').replaceAll(',', '\u202f');
}

/** Powers of ten, with their 3-fold where fewer than three lie in the domain. */
export function decades([low, high]: readonly [number, number]): number[] {
  const ticks = (factors: readonly number[]): number[] => {
    const found: number[] = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of factors) {
        const tick = Number((factor * 10 ** power).toPrecision(3));
        if (tick >= low && tick <= high) found.push(tick);
      }
    }
    return found;
  };
  const tens = ticks([1]);
  if (tens.length >= 3) return tens;
  const threes = ticks([1, 3]);
  return threes.length >= 3 ? threes : ticks([1, 2, 5]);
}

/** Powers of two within a domain, quarters between them where there are fewer than three; give the scale `base: 2`, or Plot leaves some of their labels out. */
export function octaves([low, high]: readonly [number, number]): number[] {
  const ticks = (factors: readonly number[]): number[] => {
    const found: number[] = [];
    for (let power = 2 ** Math.floor(Math.log2(low)); power <= high; power *= 2) {
      found.push(...factors.map((factor) => factor * power).filter((tick) => tick >= low && tick <= high));
    }
    return found;
  };
  const powers = ticks([1]);
  return powers.length >= 3 ? powers : ticks(powers.length === 2 ? [1, 1.5] : [1, 1.25, 1.5, 1.75]);
}
