// Chooses the token documents a calibration (or an evaluation) runs on, reproducibly by seed.
// Does not know: where texts come from, how they are tokenised, engines.

import { createHash } from 'node:crypto';
import { KvtcError } from '../base/errors.ts';
import { seededRandom, shuffled } from '../base/random.ts';

/** Texts of one kind. Every group gets the same share of the tokens, so that prose and code balance. */
export interface TextGroup {
  readonly name: string;
  readonly texts: readonly { readonly source: string; readonly text: string }[];
}

/** Tokens from one text of a group, or from several short ones. */
export interface TokenDocument {
  readonly group: string;
  readonly source: string;
  readonly tokens: Int32Array;
  /** sha256, hex, of the tokens as little-endian i32. */
  readonly sha256: string;
}

export interface SampleOptions {
  /** Tokens wanted over all groups. */
  readonly tokens: number;
  readonly documentTokens: number;
  readonly seed: number;
  readonly tokenize: (text: string) => Int32Array;
}

/** Shorter documents tell nothing. */
const LEAST_TOKENS = 64;

/** Tokens of one text that are not in a document yet. */
interface Piece {
  readonly source: string;
  readonly tokens: Int32Array;
}

/**
 * Takes documents of `documentTokens` from each group's texts in an order shuffled by seed, one from each text at a
 * random place before a second from any, until every group has its share of `tokens` or runs out: the same number of
 * tokens says more about texts never seen the more texts it comes from. Short texts are joined with blank lines, no
 * token is taken twice. Documents alternate between groups. The last document of a share may be shorter, so that small
 * samples are possible; documents under 64 tokens are dropped.
 * Throws KVTC_CALIBRATION_TEXT_SHORT when the texts give less than a quarter of the tokens wanted.
 */
export function sampleDocuments(groups: readonly TextGroup[], options: SampleOptions): TokenDocument[] {
  const share = Math.ceil(options.tokens / Math.max(1, groups.length));
  const perGroup = groups.map((group) => cutGroup(group, share, options));
  const documents: TokenDocument[] = [];
  for (let i = 0; perGroup.some((list) => i < list.length); i++) {
    for (const list of perGroup) {
      const document = list[i];
      if (document !== undefined) documents.push(document);
    }
  }
  const found = documents.reduce((sum, document) => sum + document.tokens.length, 0);
  if (found < options.tokens / 4) {
    throw new KvtcError(
      'KVTC_CALIBRATION_TEXT_SHORT',
      `the texts give ${found} tokens, ${options.tokens} were asked for; give at least ${Math.ceil(options.tokens / 4)}`,
      { foundTokens: found, wantedTokens: options.tokens },
    );
  }
  return documents;
}

function cutGroup(group: TextGroup, wantedTokens: number, options: SampleOptions): TokenDocument[] {
  const { documentTokens, tokenize } = options;
  const random = seededRandom(options.seed);
  const order = shuffled(group.texts, random).map(({ source, text }) => ({ source, text, start: random.uniform() }));
  const documents: TokenDocument[] = [];
  const pieces: Piece[] = [];
  let pending = 0;
  let taken = 0;
  const cut = (length: number): void => {
    const document = joinPieces(pieces, length);
    pending -= length;
    taken += length;
    documents.push({ group: group.name, ...document, sha256: hashTokens(document.tokens) });
  };
  const add = (piece: Piece): void => {
    pieces.push(piece);
    pending += piece.tokens.length;
    while (taken < wantedTokens) {
      const length = Math.min(documentTokens, wantedTokens - taken);
      if (pending < length) break;
      cut(length);
    }
  };
  // What texts still have after one document from each.
  const rest: Piece[] = [];
  for (const { source, text, start } of order) {
    if (taken >= wantedTokens) break;
    const tokens = tokenize(`${text}\n\n`);
    const spare = Math.max(0, tokens.length - documentTokens);
    const first = Math.floor(start * (spare + 1));
    if (tokens.length > 0) add({ source, tokens: tokens.slice(first, first + documentTokens) });
    for (const [from, to] of [
      [first + documentTokens, tokens.length],
      [0, first],
    ] as const) {
      if (to > from) rest.push({ source, tokens: tokens.subarray(from, to) });
    }
  }
  for (const piece of rest) {
    if (taken >= wantedTokens) break;
    add(piece);
  }
  if (taken < wantedTokens && pending >= LEAST_TOKENS) cut(Math.min(pending, documentTokens));
  return documents.filter((document) => document.tokens.length >= LEAST_TOKENS);
}

/** Takes `length` tokens off the front of the pieces. */
function joinPieces(pieces: Piece[], length: number): { source: string; tokens: Int32Array } {
  const tokens = new Int32Array(length);
  const sources = new Set<string>();
  let filled = 0;
  while (filled < length) {
    const piece = pieces[0] as Piece;
    const part = piece.tokens.subarray(0, length - filled);
    tokens.set(part, filled);
    filled += part.length;
    sources.add(piece.source);
    if (part.length === piece.tokens.length) pieces.shift();
    else pieces[0] = { source: piece.source, tokens: piece.tokens.subarray(part.length) };
  }
  return { source: [...sources].join(' + '), tokens };
}

/** sha256, hex, of token ids as little-endian i32. */
export function hashTokens(tokens: Int32Array): string {
  return createHash('sha256')
    .update(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength))
    .digest('hex');
}
