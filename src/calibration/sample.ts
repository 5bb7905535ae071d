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

/** A run of tokens cut from the concatenated texts of one group. */
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

/**
 * Shuffles each group's texts by seed, joins them with blank lines and cuts documents of `documentTokens` until every
 * group has its share of `tokens` or runs out. Documents alternate between groups. The last document of the sample may
 * be shorter, so that small samples are possible; documents under 64 tokens are dropped.
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
  const order = shuffled(group.texts, seededRandom(options.seed));
  const documents: TokenDocument[] = [];
  let pieces: { source: string; tokens: Int32Array }[] = [];
  let pending = 0;
  let taken = 0;
  const cut = (length: number): void => {
    const tokens = new Int32Array(length);
    const sources: string[] = [];
    let filled = 0;
    while (filled < length) {
      const piece = pieces[0] as { source: string; tokens: Int32Array };
      const part = piece.tokens.subarray(0, length - filled);
      tokens.set(part, filled);
      filled += part.length;
      sources.push(piece.source);
      if (part.length === piece.tokens.length) pieces.shift();
      else pieces[0] = { source: piece.source, tokens: piece.tokens.subarray(part.length) };
    }
    pending -= length;
    taken += length;
    documents.push({ group: group.name, source: sources.join(' + '), tokens, sha256: hashTokens(tokens) });
  };
  for (const text of order) {
    if (taken >= wantedTokens) break;
    const tokens = options.tokenize(`${text.text}\n\n`);
    if (tokens.length === 0) continue;
    pieces.push({ source: text.source, tokens });
    pending += tokens.length;
    while (taken < wantedTokens) {
      const length = Math.min(options.documentTokens, wantedTokens - taken);
      if (pending < length) break;
      cut(length);
    }
  }
  if (taken < wantedTokens && pending >= 64) cut(Math.min(pending, options.documentTokens));
  return documents.filter((document) => document.tokens.length >= 64);
}

/** sha256, hex, of token ids as little-endian i32. */
export function hashTokens(tokens: Int32Array): string {
  return createHash('sha256')
    .update(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength))
    .digest('hex');
}
