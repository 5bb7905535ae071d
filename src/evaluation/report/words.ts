// Numbers and lists as the report's sentences and tables write them. Spaces before units do not break.
// Does not know: what the numbers are of.

export function nats(value: number): string {
  return value !== 0 && Math.abs(value) < 0.001 ? powerOfTen(value, 1) : value.toFixed(4);
}

/** 0.0000173 → `1.7·10⁻⁵`; a bare power where it is one. */
export function powerOfTen(value: number, digits: number): string {
  const [mantissa = '', exponent = ''] = value.toExponential(digits).split('e');
  const raised = exponent
    .replace('+', '')
    .replaceAll(/[-\d]/gu, (sign) => SUPERSCRIPTS['-0123456789'.indexOf(sign)] ?? '');
  return `${mantissa === '1' ? '' : `${mantissa}·`}10${raised}`;
}

const SUPERSCRIPTS = '⁻⁰¹²³⁴⁵⁶⁷⁸⁹';

export function percent(share: number, digits = 2): string {
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

/** 20.6012 → `20.601`; past a thousand nothing after the point says anything. */
export function perplexity(value: number): string {
  return value < 1000 ? value.toFixed(3) : `${Math.round(value)}`;
}

/** Three digits: `6.76`, `17.6`, `128`. */
export function times(ratio: number | null): string {
  return ratio === null ? '–' : ratio.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.max(1, ratio)))));
}

/** 447 ms → `0.447 s`, 56.1 ms → `56 ms`. */
export function seconds(elapsedMs: number): string {
  return elapsedMs < 99.5 ? `${elapsedMs.toPrecision(2)}\u00a0ms` : `${(elapsedMs / 1000).toPrecision(3)}\u00a0s`;
}

export function list(names: readonly string[]): string {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}
