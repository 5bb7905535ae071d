// Two quantisers with ideal static code lengths, to estimate what one brings over the other before either is built:
// uniform with rate-distortion optimised choice, and trellis-coded (two interleaved quantisers, the parity of each integer
// leads to the next). Does not know: where coefficients come from, bytes.

/** A token's coefficients in units of its step, and the class of each, 0 to CLASSES − 1: σ = 2^((class − 10) / 4) steps. */
export interface TokenSamples {
  readonly values: Float64Array;
  readonly classes: Uint8Array;
  /** What one squared step weighs in the error of the whole. */
  readonly weight: number;
  /** What is spent on and lost by coefficients that no quantiser here sees. */
  readonly otherBits: number;
  readonly otherError: number;
}

export interface RateError {
  readonly bits: number;
  readonly error: number;
}

export const CLASSES = 21;
/** Largest |k|. */
export const REACH = 40;
const SYMBOLS = 2 * REACH + 1;
/** Offsets are learned for |k| = 1, 2 and beyond. */
const CELLS = 3;
const PRIOR = 8;
const ROUNDS = 5;

/** From each state by the parity of k: 4 or 8 states, of which those of `usesOdd` quantise to half steps. */
const TRELLISES = {
  4: {
    next: [
      [0, 2],
      [2, 0],
      [1, 3],
      [3, 1],
    ],
    usesOdd: (state: number): boolean => state >= 2,
  },
  8: {
    next: [
      [0, 2],
      [5, 7],
      [1, 3],
      [6, 4],
      [2, 0],
      [4, 6],
      [3, 1],
      [7, 5],
    ],
    usesOdd: (state: number): boolean => (state & 1) === 1,
  },
} as const;

/** 1 is the uniform quantiser. */
export type States = 1 | 4 | 8;

/** Code lengths and offsets by class and state. */
interface Model {
  readonly states: States;
  /** f64[CLASSES · states, SYMBOLS] */
  readonly bits: Float64Array;
  /** f64[CLASSES · states, CELLS]: what |k| falls short of the mean of its cell. */
  readonly offsets: Float64Array;
  readonly counts: Float64Array;
  readonly offsetSums: Float64Array;
  readonly offsetCounts: Float64Array;
}

function createModel(states: States): Model {
  const rows = CLASSES * states;
  const model = {
    states,
    bits: new Float64Array(rows * SYMBOLS),
    offsets: new Float64Array(rows * CELLS),
    counts: new Float64Array(rows * SYMBOLS),
    offsetSums: new Float64Array(rows * CELLS),
    offsetCounts: new Float64Array(rows * CELLS),
  };
  fit(model);
  return model;
}

/** Code lengths and offsets from counts and a Laplacian prior; counts start anew. */
function fit(model: Model): void {
  const { bits, counts, offsets, offsetSums, offsetCounts, states } = model;
  for (let row = 0; row < CLASSES * states; row++) {
    const deviation = 2 ** ((Math.floor(row / states) - 10) / 4);
    const at = row * SYMBOLS + REACH;
    const smooth = (k: number): number =>
      (counts[at + k]! + counts[at - k]!) / 2 +
      (PRIOR * Math.exp((-Math.SQRT2 * Math.abs(k)) / Math.max(deviation, 0.15))) / (2 * Math.max(deviation, 0.3)) +
      1e-4;
    let sum = 0;
    for (let k = -REACH; k <= REACH; k++) sum += smooth(k);
    for (let k = -REACH; k <= REACH; k++) bits[at + k] = Math.log2(sum / smooth(k));
  }
  for (let cell = 0; cell < offsets.length; cell++) offsets[cell] = offsetSums[cell]! / (offsetCounts[cell]! + 20);
  for (const sums of [counts, offsetSums, offsetCounts]) sums.fill(0);
}

/** A model trained on `training` for a choice that weighs a bit as `bitWeight` squared steps. */
export function trainQuantiser(training: readonly TokenSamples[], states: States, bitWeight: number): Model {
  const model = createModel(states);
  for (let round = 0; round < ROUNDS; round++) {
    quantise(training, model, bitWeight);
    fit(model);
  }
  return model;
}

/** Rate and error of tokens under a model; what was chosen is counted into it. */
export function quantise(tokens: readonly TokenSamples[], model: Model, bitWeight: number): RateError {
  let bits = 0;
  let error = 0;
  for (const token of tokens) {
    const one = quantiseToken(token, model, bitWeight);
    bits += token.otherBits + one.bits;
    error += token.weight * (token.otherError + one.error);
  }
  return { bits, error };
}

/** The cheapest path through the trellis (Viterbi); the uniform quantiser has one state that leads to itself. */
function quantiseToken({ values, classes }: TokenSamples, model: Model, bitWeight: number): RateError {
  const { states, bits, offsets } = model;
  const trellis = states === 1 ? null : TRELLISES[states];
  const n = values.length;
  const from = new Int8Array(n * states);
  const chosen = new Int8Array(n * states);
  let costs = new Float64Array(states).fill(Infinity);
  let next = new Float64Array(states);
  costs[0] = 0;
  for (let i = 0; i < n; i++) {
    next.fill(Infinity);
    const magnitude = Math.abs(values[i]!);
    const sign = values[i]! < 0 ? -1 : 1;
    for (let state = 0; state < states; state++) {
      if (costs[state] === Infinity) continue;
      const shift = trellis?.usesOdd(state) === true ? 0.5 : 0;
      const row = classes[i]! * states + state;
      const whole = Math.floor(magnitude + shift);
      for (const k of [whole + 1, whole, whole - 1, 0]) {
        if (k < 0 || k > REACH) continue;
        const value = k === 0 ? 0 : k - shift + offsets[row * CELLS + Math.min(k, CELLS) - 1]!;
        const cost = costs[state]! + (magnitude - value) ** 2 + bitWeight * bits[row * SYMBOLS + REACH + sign * k]!;
        const to = trellis === null ? 0 : trellis.next[state]![k & 1]!;
        if (cost < next[to]!) {
          next[to] = cost;
          from[i * states + to] = state;
          chosen[i * states + to] = sign * k;
        }
      }
    }
    [costs, next] = [next, costs];
  }
  let state = costs.indexOf(Math.min(...costs));
  const sums = { bits: 0, error: 0 };
  for (let i = n - 1; i >= 0; i--) {
    const k = chosen[i * states + state]!;
    state = from[i * states + state]!;
    count(
      model,
      classes[i]! * states + state,
      k,
      Math.abs(values[i]!),
      trellis?.usesOdd(state) === true ? 0.5 : 0,
      sums,
    );
  }
  return sums;
}

function count(
  { bits, counts, offsets, offsetSums, offsetCounts }: Model,
  row: number,
  k: number,
  magnitude: number,
  shift: number,
  sums: { bits: number; error: number },
): void {
  const symbol = row * SYMBOLS + REACH + k;
  sums.bits += bits[symbol]!;
  counts[symbol]!++;
  if (k === 0) {
    sums.error += magnitude ** 2;
    return;
  }
  const cell = row * CELLS + Math.min(Math.abs(k), CELLS) - 1;
  const short = magnitude - (Math.abs(k) - shift);
  sums.error += (short - offsets[cell]!) ** 2;
  offsetSums[cell]! += short;
  offsetCounts[cell]!++;
}

/** Rate at an error between two points of a curve, on a log-log line; NaN beyond it. */
export function rateAtError(curve: readonly RateError[], error: number): number {
  const sorted = curve.toSorted((a, b) => a.error - b.error);
  const above = sorted.findIndex((point) => point.error >= error);
  const [lower, upper] = [sorted[above - 1], sorted[above]];
  if (upper?.error === error) return upper.bits;
  if (lower === undefined || upper === undefined) return NaN;
  const share = Math.log(error / lower.error) / Math.log(upper.error / lower.error);
  return lower.bits * (upper.bits / lower.bits) ** share;
}
