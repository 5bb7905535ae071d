// Numbers and tables as people read them. Does not know: verbs, streams, colours.

const BYTE_UNITS = ['bytes', 'kB', 'MB', 'GB', 'TB'] as const;

/** Decimal units, three significant digits: 98362432 → `98.4 MB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit === 0 ? `${bytes} bytes` : `${value.toPrecision(3)} ${BYTE_UNITS[unit]}`;
}

/** 12345678 → `12 345 678`. */
export function formatCount(count: number): string {
  return Math.round(count)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ' ');
}

/** 845 → `845 ms`, 2345 → `2.35 s`, 95000 → `1 min 35 s`. */
export function formatDuration(elapsedMs: number): string {
  if (elapsedMs < 999.5) return `${Math.round(elapsedMs)} ms`;
  if (elapsedMs < 59_995) return `${(elapsedMs / 1000).toPrecision(3)} s`;
  const seconds = Math.round(elapsedMs / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

/** 18.4167 → `18.4x`; three digits or more. */
export function formatRatio(ratio: number): string {
  return `${ratio.toFixed(ratio < 10 ? 2 : ratio < 100 ? 1 : 0)}x`;
}

/** Both ratios, never one alone (docs/accounting.md). */
export function ratiosText(paperRatio: number, effectiveRatio: number): string {
  return `${formatRatio(paperRatio)} by the paper's count, ${formatRatio(effectiveRatio)} with every byte`;
}

/** Share of a whole: `1.25 %`. */
export function formatPercent(share: number): string {
  return `${(share * 100).toFixed(2)} %`;
}

/** nats and the like: four digits after the point, more for tiny values. */
export function formatSmall(value: number): string {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(4);
}

export type Align = 'left' | 'right';

/** Rows under an optional heading, columns two spaces apart, indented by two. */
export function table(
  rows: readonly (readonly string[])[],
  aligns: readonly Align[],
  heading?: readonly string[],
): string {
  const all = heading === undefined ? rows : [heading, ...rows];
  const widths = aligns.map((_, column) => Math.max(0, ...all.map((row) => (row[column] ?? '').length)));
  const line = (row: readonly string[]): string =>
    `  ${widths
      .map((width, column) => {
        const cell = row[column] ?? '';
        return aligns[column] === 'right' ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd()}`;
  const lines = rows.map(line);
  if (heading !== undefined) lines.unshift(line(heading), `  ${widths.map((width) => '-'.repeat(width)).join('  ')}`);
  return lines.join('\n');
}

export interface NamedBytes {
  readonly name: string;
  readonly byteLength: number;
}

/** Bytes by part with their shares, and the sum as the last line. */
export function bytesTable(parts: readonly NamedBytes[], totalBytes: number): string {
  const share = (bytes: number): string => (totalBytes === 0 ? '' : formatPercent(bytes / totalBytes));
  const rows = parts.map(({ name, byteLength }) => [name, formatCount(byteLength), share(byteLength)]);
  rows.push(['total', formatCount(totalBytes), share(totalBytes)]);
  return table(rows, ['left', 'right', 'right'], ['part', 'bytes', 'share']);
}

/** What a profile's matrices add to the model. */
export function profileSizeText(size: {
  readonly matrixEntries: number;
  readonly parameterShare: number | null;
}): string {
  const share = size.parameterShare === null ? '' : `, ${formatPercent(size.parameterShare)} of the model's parameters`;
  return `${formatCount(size.matrixEntries)} values${share}`;
}
