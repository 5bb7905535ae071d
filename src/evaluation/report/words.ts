// Numbers and lists as the report's sentences and tables write them. Spaces before units do not break.
// Does not know: what the numbers are of.

export function nats(value: number): string {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(4);
}

export function percent(share: number, digits = 2): string {
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

export function times(ratio: number | null): string {
  return ratio === null ? '–' : ratio.toFixed(2);
}

/** 447 ms → `0.447 s`, 0.23 ms → `0.23 ms`. */
export function seconds(elapsedMs: number): string {
  return elapsedMs < 10 ? `${elapsedMs.toPrecision(2)}\u00a0ms` : `${(elapsedMs / 1000).toPrecision(3)}\u00a0s`;
}

export function list(names: readonly string[]): string {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}
