// The section on rate against loss: charts, what codecs reach at equal loss, who beats whom, a table with every number.
// Does not know: how charts are drawn, close-ups, tasks.

import { equalQuality, equalRatioText } from '../equal-quality.ts';
import type { Evaluation } from '../evaluate.ts';
import { seriesNames } from '../series.ts';
import type { EvaluationRow, OutputFigures } from '../summary.ts';
import { wholeNumber } from './chart.ts';
import { comparison, isVariant, mainRow, rivalsOf } from './comparison.ts';
import { chartsHtml, detailsHtml, sectionHtml, tableHtml } from './html.ts';
import { rateChart } from './rate-charts.ts';
import { nats, percent, perplexity, seconds, times } from './words.ts';

/** Rate against loss, and every number of the table. */
export function rateSection({ rows, floor, settings }: Evaluation): string {
  const main = mainRow(rows);
  const equal = equalQuality(rows).find(({ against }) => against === main);
  const title =
    main === undefined || main.effectiveRatio === null
      ? 'What each ratio costs'
      : `A cache ${times(main.effectiveRatio)} times smaller costs ${nats(main.klNats)} nats a token` +
        (equal === undefined || equal.effectiveRatio.relation === 'below'
          ? ''
          : `; at that loss ${equal.series} makes it ${equal.effectiveRatio.relation === 'atLeast' ? 'more than ' : ''}${times(equal.effectiveRatio.ratio)} times smaller`);
  const text =
    `KL divergence of the next-token distribution, exact cache against restored cache, on ${settings.continuationTokens} tokens after a prefix of ${settings.prefixTokens}; ` +
    `and on ${settings.copyTokens} tokens that repeat a passage of the prefix, which needs the keys to find it.`;
  const charts = chartsHtml([
    rateChart('rate-kl', rows, floor, 'klNats', 'effectiveRatio'),
    rateChart('rate-copy-kl', rows, floor, 'copyKlNats', 'effectiveRatio'),
    // Variants of one ratio would lie on top of each other by the paper's count.
    ...(rows.some(isVariant)
      ? []
      : [
          rateChart('paper-rate-kl', rows, floor, 'klNats', 'paperRatio'),
          rateChart('paper-rate-copy-kl', rows, floor, 'copyKlNats', 'paperRatio'),
        ]),
  ]);
  return sectionHtml(
    'quality',
    title,
    text,
    charts +
      equalHtml(rows) +
      rivalsHtml(rows) +
      '<h3>Every number</h3>' +
      rowsTable(rows, floor) +
      kindsTable(rows, floor) +
      documentsTable(rows, settings.documents),
  );
}

/** What other codecs reach at the losses of the published one. */
function equalHtml(rows: readonly EvaluationRow[]): string {
  const found = equalQuality(rows);
  if (found.length === 0) return '';
  const withRetrieval = found.some(({ retrievalRatio }) => retrievalRatio !== null);
  const heading = [
    'no worse in KL and copy KL than',
    'paper ratio',
    'every byte',
    'codec',
    'paper ratio',
    'every byte',
    ...(withRetrieval ? ['retrieval no worse up to'] : []),
  ];
  const lines = found.map(({ series, against, paperRatio, effectiveRatio, retrievalRatio }) => [
    against.treatment,
    times(against.paperRatio),
    times(against.effectiveRatio),
    series,
    equalRatioText(paperRatio),
    equalRatioText(effectiveRatio),
    ...(withRetrieval ? [retrievalRatio === null ? '–' : equalRatioText(retrievalRatio)] : []),
  ]);
  return `<h3>At equal loss, read off between measured ratios</h3>${tableHtml(heading, lines)}`;
}

/** Who beats whom on size and loss at once, codec by codec: also where ours lose. */
function rivalsHtml(rows: readonly EvaluationRow[]): string {
  const rivals = rivalsOf(rows);
  const names = seriesNames(rows);
  if (rivals.length === 0 || names.length === 0) return '';
  const columns = names.flatMap((name) =>
    (['klNats', 'copyKlNats'] as const).map((measure) => ({
      name,
      measure,
      heading: `${name}, ${measure === 'klNats' ? 'prediction' : 'copying'}`,
      found: comparison(rows, measure, 'effectiveRatio', name),
    })),
  );
  const lines = rivals.map(({ treatment, effectiveRatio }) => [
    treatment,
    times(effectiveRatio),
    ...columns.map(({ name, found }) =>
      found.beating.includes(treatment) ? 'the rival' : found.beaten.includes(treatment) ? name : 'neither',
    ),
  ]);
  const heading = ['rival', 'every byte', ...columns.map(({ heading: title }) => title)];
  return `<h3>Which is smaller and closer to exact at once, at some ratio</h3>${tableHtml(heading, lines)}`;
}

function figuresOf(row: OutputFigures): string[] {
  return [
    nats(row.klNats),
    nats(row.copyKlNats),
    percent(row.top1Agreement),
    perplexity(row.perplexityExact),
    perplexity(row.perplexityRestored),
    percent(row.copyAccuracyExact, 1),
    percent(row.copyAccuracyRestored, 1),
  ];
}

const FIGURE_HEADING = [
  'KL, nats',
  'copy KL, nats',
  'same top token',
  'perplexity, exact',
  'perplexity, restored',
  'copied, exact',
  'copied, restored',
];

function rowsTable(rows: readonly EvaluationRow[], floor: EvaluationRow): string {
  const line = (row: EvaluationRow): string[] => [
    row.treatment,
    times(row.paperRatio),
    times(row.effectiveRatio),
    ...figuresOf(row),
    row.storedBytes === null ? '–' : wholeNumber(row.storedBytes),
    row.effectiveRatio === null ? '–' : seconds(row.compressMs),
    row.effectiveRatio === null || row.restoreMs === 0 ? '–' : seconds(row.restoreMs),
    `${row.documents}`,
  ];
  const heading = ['', 'paper ratio', 'every byte', ...FIGURE_HEADING, 'bytes', 'compress', 'restore', 'texts'];
  return tableHtml(heading, [...rows, floor].map(line));
}

function kindsTable(rows: readonly EvaluationRow[], floor: EvaluationRow): string {
  const lines = [...rows, floor].flatMap((row) =>
    Object.entries(row.byKind).map(([kind, figures]) => [
      `${row.treatment}, ${kind}`,
      ...figuresOf(figures),
      `${figures.documents}`,
    ]),
  );
  return detailsHtml('By kind of text', tableHtml(['', ...FIGURE_HEADING, 'documents'], lines));
}

/** How far documents differ, which a mean hides: KL and copy KL of each, by their place in the run. */
function documentsTable(rows: readonly EvaluationRow[], documents: Evaluation['settings']['documents']): string {
  const told = rows.filter(({ byDocument = [] }) => byDocument.length > 1);
  if (told.length === 0) return '';
  const heading = ['', ...told.map(({ treatment }) => treatment)];
  const tableOf = (measure: 'klNats' | 'copyKlNats'): string =>
    tableHtml(
      heading,
      documents.map(({ kind }, i) => [
        `${i + 1} ${kind}`,
        ...told.map(({ byDocument = [] }) => (byDocument[i] === undefined ? '–' : nats(byDocument[i][measure]))),
      ]),
    );
  return (
    detailsHtml('KL by document, nats a token', tableOf('klNats')) +
    detailsHtml('Copy KL by document', tableOf('copyKlNats'))
  );
}
