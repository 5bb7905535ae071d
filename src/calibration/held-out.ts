// Rows that no basis is fitted to: which documents they come from, which of their tokens, their coefficients.
// They plan the paper's bits and train and measure wtc's tables. Does not know codecs.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { streamWidth } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { Backend } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { RowSource } from './collect.ts';
import type { TokenDocument } from './sample.ts';
import { recencyAt } from './token-steps.ts';

/**
 * How many rows are held out, and of how many documents: the share of all, but rather 4 than fewer as long as these are no
 * more than a fifth, and no more than 8.
 */
const HELD_OUT_DEFAULTS = { rows: 2048, share: 1 / 12, fewDocuments: 4, largestShare: 1 / 5, documents: 8 } as const;

/** RoPE undone. */
export interface HeldOutRows {
  readonly rowCount: number;
  /** Rows of each document; they stand in this order. */
  readonly documentRows: readonly number[];
  /** Where each document's rows come from: its token ids, and the tokens that the rows are of. */
  readonly sources: readonly { readonly tokens: Int32Array; readonly chosen: readonly number[] }[];
  /** f32[rowCount, p] */
  readonly key: Float32Array;
  readonly value: Float32Array;
}

/** The documents to fit on and those to hold out. Throws KVTC_CALIBRATION_TEXT_SHORT for fewer than two. */
export function splitDocuments(documents: readonly TokenDocument[]): {
  fitting: TokenDocument[];
  heldOut: TokenDocument[];
} {
  if (documents.length < 2) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `a calibration needs at least two documents, one of them held out; the texts give ${documents.length}`,
      { documents: documents.length },
    );
  }
  const { share, fewDocuments, largestShare, documents: most } = HELD_OUT_DEFAULTS;
  const few = Math.min(fewDocuments, Math.floor(documents.length * largestShare));
  const heldCount = Math.max(1, few, Math.min(most, Math.round(documents.length * share)));
  // The last of the long documents: sampling leaves short remainders at the end, whose few positions are not typical.
  // The first document fixes the moments' frame, so it is never held out.
  const held = new Set(
    documents
      .slice(1)
      .toSorted((a, b) => b.tokens.length - a.tokens.length || documents.indexOf(b) - documents.indexOf(a))
      .slice(0, heldCount),
  );
  return {
    fitting: documents.filter((document) => !held.has(document)),
    heldOut: documents.filter((document) => held.has(document)),
  };
}

/** Tokens of a run that tells whether a text was seen before. */
const RUN_TOKENS = 32;
/** Above this share of runs seen before a document is not new: licences and imports repeat everywhere. */
const SEEN_SHARE = 1 / 8;

/**
 * Documents to hold out of moments that were measured elsewhere, on other cuts of perhaps the same texts: those that
 * share no more than a few runs of tokens with them, at most HELD_OUT_DEFAULTS.documents. Throws
 * KVTC_CALIBRATION_TEXT_SHORT when none is new.
 */
export function unseenDocuments(
  documents: readonly TokenDocument[],
  seen: readonly TokenDocument[],
): readonly TokenDocument[] {
  const known = new Set<number>();
  for (const { tokens } of seen) {
    for (let t = 0; t + RUN_TOKENS <= tokens.length; t++) known.add(runHash(tokens, t));
  }
  const unseen = documents.filter(({ tokens }) => {
    let runs = 0;
    let found = 0;
    for (let t = 0; t + RUN_TOKENS <= tokens.length; t += RUN_TOKENS, runs++) {
      if (known.has(runHash(tokens, t))) found++;
    }
    return found <= SEEN_SHARE * runs;
  });
  if (unseen.length > 0) return unseen.slice(0, HELD_OUT_DEFAULTS.documents);
  throw new KvtcError(
    'KVTC_CALIBRATION_TEXT_SHORT',
    `all ${documents.length} documents of the texts are among those of the moments; give other texts to hold out`,
    { documents: documents.length },
  );
}

/** FNV-1a over token ids: 32 bits, a clash costs a document that could have been held out. */
function runHash(tokens: Int32Array, start: number): number {
  let hash = 0x811c9dc5;
  for (let t = start; t < start + RUN_TOKENS; t++) hash = Math.imul(hash ^ tokens[t]!, 0x01000193);
  return hash;
}

/** Rows spread evenly over the held-out documents, at most HELD_OUT_DEFAULTS.rows in all. */
export async function collectHeldOut(
  options: RunOptions & { readonly rows: RowSource; readonly model: { readonly geometry: CacheGeometry } },
  documents: readonly TokenDocument[],
  seed: number,
): Promise<HeldOutRows> {
  const { geometry } = options.model;
  const widths = { key: streamWidth(geometry, 'key'), value: streamWidth(geometry, 'value') };
  const perDocument = Math.ceil(HELD_OUT_DEFAULTS.rows / documents.length);
  const taken: (HeldOutRows['sources'][number] & { key: Float32Array; value: Float32Array })[] = [];
  for (const [index, document] of documents.entries()) {
    throwIfAborted(options.signal);
    const rows = await options.rows(document, options);
    const count = Math.min(perDocument, rows.rowCount);
    const random = seededRandom(seed + index);
    const chosen = Array.from({ length: count }, (_, i) =>
      Math.min(rows.rowCount - 1, Math.floor(((i + random.uniform()) * rows.rowCount) / count)),
    );
    const pick = (stream: StreamKind): Float32Array => pickRows(rows[stream], widths[stream], chosen);
    const { tokens } = document;
    const first = tokens.length - rows.rowCount; // after the sinks
    taken.push({ tokens, chosen: chosen.map((row) => first + row), key: pick('key'), value: pick('value') });
    options.onEvent?.({
      type: 'progress',
      phase: 'held-out',
      done: index + 1,
      total: documents.length,
      unit: 'documents',
    });
  }
  const rowCount = taken.reduce((sum, part) => sum + part.chosen.length, 0);
  const join = (stream: StreamKind): Float32Array => {
    const out = new Float32Array(rowCount * widths[stream]);
    let at = 0;
    for (const part of taken) {
      out.set(part[stream], at);
      at += part[stream].length;
    }
    return out;
  };
  return {
    rowCount,
    documentRows: taken.map((part) => part.chosen.length),
    sources: taken.map(({ tokens, chosen }) => ({ tokens, chosen })),
    key: join('key'),
    value: join('value'),
  };
}

/**
 * Rows to train on and rows to measure on. From four documents on these are the first and the last half of the documents;
 * with fewer, of each document's own rows, since documents differ in kind.
 */
export function halvesOf({ documentRows }: Pick<HeldOutRows, 'documentRows'>): {
  readonly training: readonly number[];
  readonly measuring: readonly number[];
} {
  const training: number[] = [];
  const measuring: number[] = [];
  const whole = documentRows.length >= HELD_OUT_DEFAULTS.fewDocuments;
  let start = 0;
  for (const [d, rows] of documentRows.entries()) {
    const trained = whole ? (d < documentRows.length / 2 ? rows : 0) : Math.ceil(rows / 2);
    for (let r = 0; r < rows; r++) (r < trained ? training : measuring).push(start + r);
    start += rows;
  }
  return { training, measuring };
}

/** f32[rows]: recency of rows that stand evenly over their documents, as collectHeldOut takes them. */
export function recencyOf(documentRows: readonly number[]): Float32Array {
  return Float32Array.from(
    documentRows.flatMap((rows) => Array.from({ length: rows }, (_, r) => recencyAt(r + 0.5, rows))),
  );
}

/** Chosen rows of f32[_, rank]. */
export function pickRows(values: Float32Array, rank: number, rows: readonly number[]): Float32Array {
  const out = new Float32Array(rows.length * rank);
  for (const [to, from] of rows.entries()) out.set(values.subarray(from * rank, (from + 1) * rank), to * rank);
  return out;
}

/** Coefficients f32[rowCount, rank]: rows minus mean, times the transposed f32[rank, p] matrix; and the rows' energy. */
export async function projectRows(
  rows: Float32Array,
  rowCount: number,
  mean: Float32Array,
  matrix: Float32Array,
  rank: number,
  backend: Backend,
): Promise<{ readonly coefficients: Float32Array; readonly energy: number }> {
  const width = mean.length;
  const centred = new Float32Array(rowCount * width);
  let energy = 0;
  for (let r = 0, at = 0; r < rowCount; r++) {
    for (let c = 0; c < width; c++, at++) {
      const value = rows[at]! - mean[c]!;
      centred[at] = value;
      energy += value * value;
    }
  }
  const prepared = await backend.prepareMatrix(denseMatrix(matrix, rank, width), 'f32');
  const coefficients = new Float32Array(rowCount * rank);
  try {
    await prepared.multiply(centred, rowCount, coefficients);
  } finally {
    prepared.close();
  }
  return { coefficients, energy };
}
