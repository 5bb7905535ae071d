// Both codecs at equal loss, as tables of docs/results.md. Does not know: how that is read off, other tables.

import { basename } from 'node:path';
import { equalQuality, equalQualityByKind, equalRatioText } from '../../src/evaluation/equal-quality.ts';
import type { EvaluationRow } from '../../src/evaluation/summary.ts';
import type { ModelResults } from './read.ts';
import { markdown } from './words.ts';

const EQUAL_HEADING = ['no worse in KL and copy KL than', 'its ratios', 'codec', 'paper ratio', 'every byte'];
const RETRIEVAL_HEADING = 'retrieval no worse up to';

/** What a file's name begins with that holds both codecs in one run, measured to be compared. */
const PROOF = 'proof';

/** Both codecs at equal loss, every model's, from runs made for it. */
export function proofText(models: readonly ModelResults[]): string {
  const runs = models.flatMap(({ oracle, evaluations }) =>
    evaluations
      .filter(({ file }) => basename(file).startsWith(PROOF))
      .map(({ result: { rows, settings } }) => ({
        title: `${oracle.title}, ${settings.documents.length} documents`,
        rows,
      })),
  );
  if (runs.length === 0) return '';
  const lines = runs.flatMap(({ title, rows }) => equalLines(rows).map((line) => [title, ...line]));
  return [
    '## Both codecs at equal loss\n',
    "Each model's in one run, read off between measured ratios and never beyond them; no retrieval where the exact cache answers nothing:\n",
    markdown(['', ...EQUAL_HEADING, RETRIEVAL_HEADING], lines),
    equalByKindText(runs),
  ].join('\n');
}

/** Every byte, on the documents of each kind of text alone. */
function equalByKindText(runs: readonly { readonly title: string; readonly rows: readonly EvaluationRow[] }[]): string {
  const byKind = runs.map(({ title, rows }) => ({ title, found: equalQualityByKind(rows) }));
  const kinds = [...new Set(byKind.flatMap(({ found }) => [...found.keys()]))];
  if (kinds.length === 0) return '';
  const lines = byKind.flatMap(({ title, found }) =>
    [...(found.get(kinds[0] ?? '') ?? [])].map(({ series, against }, i) => [
      title,
      against.treatment,
      series,
      ...kinds.map((kind) => {
        const ratio = found.get(kind)?.[i]?.effectiveRatio;
        return ratio === undefined ? '–' : equalRatioText(ratio);
      }),
    ]),
  );
  return `The same by kind of text, every byte counted:\n\n${markdown(
    ['', EQUAL_HEADING[0] ?? '', 'codec', ...kinds],
    lines,
  )}`;
}

/** Every series of ours at the losses of the published codec, in one run; empty without both. */
export function equalText(rows: readonly EvaluationRow[]): string {
  const lines = equalLines(rows);
  if (lines.length === 0) return '';
  const withRetrieval = lines.some((line) => line.at(-1) !== '–');
  const shown = withRetrieval ? lines : lines.map((line) => line.slice(0, -1));
  const heading = withRetrieval ? [...EQUAL_HEADING, RETRIEVAL_HEADING] : EQUAL_HEADING;
  return `At equal loss, read off between measured ratios and never beyond them:\n\n${markdown(heading, shown)}`;
}

/** Cells below EQUAL_HEADING and RETRIEVAL_HEADING. */
function equalLines(rows: readonly EvaluationRow[]): string[][] {
  return equalQuality(rows).map(({ series, against, paperRatio, effectiveRatio, retrievalRatio }) => [
    against.treatment,
    `${(against.paperRatio ?? 1).toFixed(1)}; ${(against.effectiveRatio ?? 1).toFixed(1)}`,
    series,
    equalRatioText(paperRatio),
    equalRatioText(effectiveRatio),
    retrievalRatio === null ? '–' : equalRatioText(retrievalRatio),
  ]);
}
