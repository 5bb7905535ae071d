// What a changed cache does to the next-token distribution, row of logits by row of logits: KL, top-1, likelihoods.
// Sums, not means, so that slices and documents add up. Does not know: engines, caches, where logits come from.

import { KvtcError, invariant } from '../base/errors.ts';

const STEPS = 64;
const STEPS_PER_NAT = STEPS / Math.LN2;
const NATS_PER_STEP = Math.LN2 / STEPS;
/** e^-708 is the last normal double; below, the result is 0. */
const LEAST_EXPONENT = -708;
/** 2^(−k/64). Logits rarely lie 40 nats under their row's highest, so some 30 KB of it are hot. */
const POWERS = Float64Array.from(
  { length: 1 - Math.floor(LEAST_EXPONENT * STEPS_PER_NAT) },
  (_, k) => 2 ** (-k / STEPS),
);

/**
 * e^x for x in [−∞, 0], a fifth of the time of Math.exp. Relative error at most 4e-11 (cubic remainder r⁴/24 with
 * |r| ≤ ln 2/128); below −708 it is 0.
 */
export function fastExp(x: number): number {
  if (!(x > LEAST_EXPONENT)) return 0;
  const steps = -x * STEPS_PER_NAT;
  const k = (steps + 0.5) | 0;
  const r = (k - steps) * NATS_PER_STEP;
  return POWERS[k]! * (1 + r * (1 + r * (0.5 + r * (1 / 6))));
}

/** Exact next-token distributions of `rows` positions, as later runs are compared with: built once per document. */
export interface ReferenceRows {
  readonly vocabulary: number;
  readonly capacity: number;
  /** f32[capacity, vocabulary], probabilities. */
  readonly probabilities: Float32Array;
  /** f64[capacity]: Σ p · log p, with the p above. */
  readonly negativeEntropy: Float64Array;
  /** i32[capacity] */
  readonly top: Int32Array;
}

/** Sums over scored rows. Add those of slices and documents with `addScores`; read them with `meanScores`. */
export interface Scores {
  /** Rows with KL and top-1. */
  readonly rows: number;
  /** Σ KL(exact ‖ other), nats. */
  readonly klSum: number;
  /** Rows whose most likely token is the exact run's. */
  readonly agreements: number;
  /** Rows with a known next token. */
  readonly targets: number;
  /** Σ −log p(next token), nats, of the scored run. */
  readonly lossSum: number;
  /** Rows whose most likely token is the next token. */
  readonly hits: number;
}

export const NO_SCORES: Scores = { rows: 0, klSum: 0, agreements: 0, targets: 0, lossSum: 0, hits: 0 };

/** Memory for `rows` exact distributions: 4 · rows · vocabulary bytes. Reused from document to document. */
export function createReferenceRows(rows: number, vocabulary: number): ReferenceRows {
  return {
    vocabulary,
    capacity: rows,
    probabilities: new Float32Array(rows * vocabulary), // [rows, vocabulary]
    negativeEntropy: new Float64Array(rows),
    top: new Int32Array(rows),
  };
}

/** One slice of a run's logits: f32[rows, vocabulary] for positions `firstRow` … of the document's scored part. */
export interface LogitsSlice {
  readonly logits: Float32Array;
  readonly firstRow: number;
  /** Rows below this are kept as reference but not scored: the first of a copy probe, where nothing is copied yet. */
  readonly skippedRows: number;
  /** i32[rows]: the token that follows each row's position, −1 where it is not known. */
  readonly targets: Int32Array;
}

/**
 * Takes a slice of the exact run into `reference` and scores its likelihoods; KL is 0 and agreement full by definition.
 * Throws KVTC_ENGINE_FAILED for logits that are not finite.
 */
export function recordExact(reference: ReferenceRows, slice: LogitsSlice): Scores {
  const { vocabulary, probabilities } = reference;
  return eachRow(reference, slice, (logits, offset, row) => {
    const { highest, top } = findHighest(logits, offset, vocabulary);
    let sum = 0;
    for (let i = 0; i < vocabulary; i++) sum += fastExp(logits[offset + i]! - highest);
    const logSum = Math.log(sum);
    const start = row * vocabulary;
    for (let i = 0; i < vocabulary; i++) {
      probabilities[start + i] = fastExp(logits[offset + i]! - highest - logSum);
    }
    reference.top[row] = top;
    reference.negativeEntropy[row] = 0;
    // Taken by the same arithmetic as every later run, so that equal logits give a KL of exactly 0.
    const exact = compareRow(reference, row, logits, offset);
    reference.negativeEntropy[row] = -exact.kl;
    return { ...exact, kl: 0 };
  });
}

/**
 * Scores a slice of another run against the rows recorded for the same positions.
 * KL = Σ p log p − Σ p (b − log Σ e^b) in f64 over f32 probabilities: resolution about 1e-9 nats a row.
 * Throws KVTC_ENGINE_FAILED for logits that are not finite.
 */
export function scoreAgainst(reference: ReferenceRows, slice: LogitsSlice): Scores {
  return eachRow(reference, slice, (logits, offset, row) => compareRow(reference, row, logits, offset));
}

interface RowScore {
  readonly kl: number;
  readonly top: number;
  /** log Σ e^logit */
  readonly logSum: number;
}

function compareRow(reference: ReferenceRows, row: number, logits: Float32Array, offset: number): RowScore {
  const { vocabulary, probabilities } = reference;
  const start = row * vocabulary;
  const { highest, top } = findHighest(logits, offset, vocabulary);
  let sum = 0;
  let mass = 0;
  let cross = 0; // Σ p · (b − highest)
  for (let i = 0; i < vocabulary; i++) {
    const x = logits[offset + i]! - highest;
    const p = probabilities[start + i]!;
    sum += fastExp(x);
    mass += p;
    cross += p * x;
  }
  const logSum = Math.log(sum);
  return { kl: reference.negativeEntropy[row]! - (cross - mass * logSum), top, logSum: highest + logSum };
}

function findHighest(logits: Float32Array, offset: number, vocabulary: number): { highest: number; top: number } {
  let highest = -Infinity;
  let top = 0;
  for (let i = 0; i < vocabulary; i++) {
    const value = logits[offset + i]!;
    if (value > highest) {
      highest = value;
      top = i;
    }
  }
  return { highest, top };
}

function eachRow(
  reference: ReferenceRows,
  slice: LogitsSlice,
  score: (logits: Float32Array, offset: number, row: number) => RowScore,
): Scores {
  const { vocabulary } = reference;
  const { logits, firstRow, targets } = slice;
  const rows = targets.length;
  invariant(logits.length === rows * vocabulary, `${logits.length} logits for ${rows} rows of ${vocabulary}`);
  invariant(firstRow + rows <= reference.capacity, `row ${firstRow + rows} of a reference of ${reference.capacity}`);
  const sums = { ...NO_SCORES };
  for (let i = 0; i < rows; i++) {
    const row = firstRow + i;
    const { kl, top, logSum } = score(logits, i * vocabulary, row);
    if (!Number.isFinite(kl)) {
      throw new KvtcError('KVTC_ENGINE_FAILED', `the logits of scored position ${row} are not all finite`, { row });
    }
    if (row < slice.skippedRows) continue;
    sums.rows += 1;
    sums.klSum += kl;
    if (top === reference.top[row]) sums.agreements += 1;
    const target = targets[i]!;
    if (target < 0) continue;
    invariant(target < vocabulary, `token ${target} of a vocabulary of ${vocabulary}`);
    sums.targets += 1;
    sums.lossSum += logSum - logits[i * vocabulary + target]!;
    if (top === target) sums.hits += 1;
  }
  return sums;
}

/** Sums of several slices or documents. */
export function addScores(...parts: readonly Scores[]): Scores {
  const sums = { ...NO_SCORES };
  for (const part of parts) {
    for (const name of Object.keys(sums) as (keyof Scores)[]) sums[name] += part[name];
  }
  return sums;
}

/** Means over the rows of a sum; NaN where there are none. */
export interface MeanScores {
  readonly klNats: number;
  readonly top1Agreement: number;
  /** e^(mean −log p of the next token) */
  readonly perplexity: number;
  /** Share of rows whose most likely token is the next token. */
  readonly accuracy: number;
}

/** What a sum of scores says per row. */
export function meanScores(scores: Scores): MeanScores {
  return {
    klNats: scores.klSum / scores.rows,
    top1Agreement: scores.agreements / scores.rows,
    perplexity: Math.exp(scores.lossSum / scores.targets),
    accuracy: scores.hits / scores.targets,
  };
}
