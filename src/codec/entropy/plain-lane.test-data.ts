// A lane written and read as docs/format/entropy.md says, one division at a time: what kernels are held to.

export type PlainStep =
  | { readonly symbol: number; readonly frequencies: readonly number[] }
  | { readonly raw: number; readonly bits: number };

const startOf = (frequencies: readonly number[], symbol: number): number =>
  frequencies.slice(0, symbol).reduce((sum, f) => sum + f, 0);

/** Words in decoding order. */
export function writePlainLane(steps: readonly PlainStep[]): number[] {
  let x = 32768;
  const words: number[] = [];
  const take = (limit: number): void => {
    if (x < limit) return;
    words.unshift(x % 65536);
    x = Math.floor(x / 65536);
  };
  for (const step of steps.toReversed()) {
    if ('raw' in step) {
      take(2 ** (31 - step.bits));
      x = x * 2 ** step.bits + step.raw;
    } else {
      const f = step.frequencies[step.symbol] ?? 0;
      take(f * 2 ** 19);
      x = 4096 * Math.floor(x / f) + (x % f) + startOf(step.frequencies, step.symbol);
    }
  }
  return [Math.floor(x / 65536), x % 65536, ...words];
}
