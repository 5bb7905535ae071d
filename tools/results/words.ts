// Titles, numbers and tables of docs/results.md as Markdown. Does not know: what they are of.

import { basename } from 'node:path';

export function markdown(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const rule = heading.map((_, i) => (i === 0 ? '---' : '---:'));
  return `${[line(heading), line(rule), ...rows.map(line)].join('\n')}\n`;
}

export function nats(value: number): string {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(4);
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** `2 116 800`. */
export function wholeNumber(value: number): string {
  return value.toFixed(0).replaceAll(/\B(?=(\d{3})+$)/gu, '\u202f');
}

/** What a result's file is called: `bench/results/m/both-codecs-6-documents.json` is "Both codecs, 6 documents". */
export function runTitle(file: string): string {
  const name = basename(file, '.json').replace(/-(\d+)-(documents?)$/u, ', $1 $2');
  return name.slice(0, 1).toUpperCase() + name.slice(1).replaceAll('-', ' ');
}
