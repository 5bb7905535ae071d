// The corpus in the form that calibration takes. Does not know what is in it.

import type { TextGroup } from '../../calibration/sample.ts';
import type { CorpusText } from '../../models/corpus.ts';

/** One group per kind, in the order of their first texts. */
export function groupByKind(texts: readonly CorpusText[]): TextGroup[] {
  const kinds = [...new Set(texts.map(({ kind }) => kind))];
  return kinds.map((kind) => ({ name: kind, texts: texts.filter((text) => text.kind === kind) }));
}
