// HTML from plain data: text is escaped here and nowhere else. Does not know: what a report says.

import type { Figure } from './chart.ts';

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/gu, (sign) => `&#${sign.codePointAt(0)};`);
}

function figureHtml({ id, title, svg, caption, legend }: Figure): string {
  const list = legendHtml(legend ?? []);
  const words = caption === '' ? '' : `<figcaption>${escapeHtml(caption)}</figcaption>`;
  return `<figure data-chart="${escapeHtml(id)}"><h3>${escapeHtml(title)}</h3>${svg}${list}${words}</figure>`;
}

export function legendHtml(legend: NonNullable<Figure['legend']>): string {
  const items = legend.map(
    ({ colour, label }) => `<li><i style="background:${escapeHtml(colour)}"></i>${escapeHtml(label)}</li>`,
  );
  return items.length === 0 ? '' : `<ul class="legend">${items.join('')}</ul>`;
}

/** `layout` is a class of page-style.ts. */
export function chartsHtml(figures: readonly (Figure | null)[], layout: 'charts' | 'grids' = 'charts'): string {
  return `<div class="${layout}">${figures.map((figure) => (figure === null ? '' : figureHtml(figure))).join('\n')}</div>`;
}

/** A figure and a table side by side, one above the other where there is no room. */
export function besideHtml(figure: Figure, table: string): string {
  return `<div class="charts">${figureHtml(figure)}<div>${table}</div></div>`;
}

/** The first column is text, the others are figures. */
export function tableHtml(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[], tag: 'td' | 'th'): string =>
    `<tr>${cells.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join('')}</tr>`;
  const body = rows.map((row) => line(row, 'td')).join('');
  return `<div class="scroll"><table><thead>${line(heading, 'th')}</thead><tbody>${body}</tbody></table></div>`;
}

export function detailsHtml(summary: string, content: string): string {
  return `<details><summary>${escapeHtml(summary)}</summary>${content}</details>`;
}

export function factsHtml(facts: readonly (readonly [string, string])[]): string {
  return `<dl>${facts.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('')}</dl>`;
}

/** `titles` and `text` are plain. */
export function sectionHtml(id: string, title: string, text: string, content: string): string {
  const paragraph = text === '' ? '' : `<p>${escapeHtml(text)}</p>`;
  return `<section id="${escapeHtml(id)}"><h2>${escapeHtml(title)}</h2>${paragraph}${content}</section>`;
}
