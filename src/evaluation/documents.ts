// Cuts the token documents an evaluation runs on: texts of one kind joined and cut, kinds in turn (evidence.md protocol).
// Does not know: where texts come from, models, what is done to the documents.

import { KvtcError } from '../base/errors.ts';
import { hashTokens } from '../calibration/sample.ts';

/** A text to evaluate on. `kind` groups texts that are joined with each other and reported together. */
export interface EvaluationText {
  readonly source: string;
  readonly kind: string;
  readonly text: string;
}

/** Tokens whose first `prefixTokens` become the cache and whose rest is predicted from it. */
export interface EvaluationDocument {
  readonly kind: string;
  /** Files the tokens come from, joined by ` + `. */
  readonly source: string;
  /** i32[prefixTokens + continuationTokens] */
  readonly tokens: Int32Array;
  /** sha256, hex, of the tokens as little-endian i32. */
  readonly sha256: string;
}

export interface CutOptions {
  readonly documentTokens: number;
  /** Documents wanted over all kinds; fewer come when the texts run out. */
  readonly documents: number;
  /** Without beginning-of-sequence or other special tokens. */
  readonly tokenize: (text: string) => Int32Array | Promise<Int32Array>;
}

/**
 * Joins the texts of each kind in the order given, a blank line between two, cuts documents of `documentTokens` and
 * takes them from the kinds in turn. Only as much text is tokenised as is needed.
 * Throws KVTC_PROMPT_EMPTY when not one document can be cut, KVTC_OPTION_INVALID for counts below 1.
 */
export async function cutDocuments(
  texts: readonly EvaluationText[],
  options: CutOptions,
): Promise<EvaluationDocument[]> {
  for (const name of ['documentTokens', 'documents'] as const) {
    if (!Number.isSafeInteger(options[name]) || options[name] < 1) {
      const message = `${name} is ${options[name]}; expected an integer of at least 1`;
      throw new KvtcError('KVTC_OPTION_INVALID', message, { option: name, got: options[name] });
    }
  }
  const kinds = [...new Set(texts.map(({ kind }) => kind))].map((kind) =>
    cutKind(
      kind,
      texts.filter((text) => text.kind === kind),
      options,
    ),
  );
  const documents: EvaluationDocument[] = [];
  let open = kinds;
  while (open.length > 0 && documents.length < options.documents) {
    const going: typeof open = [];
    for (const kind of open) {
      if (documents.length === options.documents) break;
      const { value, done } = await kind.next();
      if (done === true) continue;
      documents.push(value);
      going.push(kind);
    }
    open = going;
  }
  if (documents.length === 0) {
    throw new KvtcError(
      'KVTC_PROMPT_EMPTY',
      `no kind of the ${texts.length} texts has the ${options.documentTokens} tokens of one document; give more text or shorter documents`,
      { texts: texts.length, neededTokens: options.documentTokens },
    );
  }
  return documents;
}

async function* cutKind(
  kind: string,
  texts: readonly EvaluationText[],
  options: CutOptions,
): AsyncGenerator<EvaluationDocument, void> {
  let tokens = new Int32Array(options.documentTokens);
  let filled = 0;
  let sources: string[] = [];
  for (const { source, text } of texts) {
    let rest = await options.tokenize(`${text}\n\n`);
    while (rest.length > 0) {
      const part = rest.subarray(0, tokens.length - filled);
      tokens.set(part, filled);
      filled += part.length;
      rest = rest.subarray(part.length);
      sources.push(source);
      if (filled < tokens.length) continue;
      yield { kind, source: sources.join(' + '), tokens, sha256: hashTokens(tokens) };
      tokens = new Int32Array(options.documentTokens);
      filled = 0;
      sources = [];
    }
  }
}
