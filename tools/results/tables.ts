// docs/results.md: per model the tables of the evidence by our own code, the oracle's figure in brackets behind each of
// ours. Does not know: how anything was measured, where files lie.

import { basename } from 'node:path';
import { BYTE_ORDERS } from '../../src/evaluation/byte-orders.ts';
import type { CloseUp } from '../../src/evaluation/close-up.ts';
import type { Evaluation } from '../../src/evaluation/evaluate.ts';
import { equalQuality, equalRatioText } from '../../src/evaluation/equal-quality.ts';
import { isPlainKvtc } from '../../src/evaluation/report/comparison.ts';
import { evaluatedProfiles, exactTokensText, seriesOf } from '../../src/evaluation/series.ts';
import type { EvaluationRow } from '../../src/evaluation/summary.ts';
import type { Comparison } from './compare.ts';
import { openComparison } from './compare.ts';
import { losesText } from './loses.ts';
import type { Evidence, ModelResults, NamedResult, Oracle, OracleFigures } from './read.ts';
import { markdown, nats, percent, runTitle, wholeNumber } from './words.ts';

/** Shares of the width at which captured energy is told. */
const ENERGY_SHARES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5];
const STREAMS = ['key', 'value'] as const;

const HEAD = `# Results

Made by \`tools/make-results.ts\` from the files below \`bench/results\`, each the \`--json\` output of one command; do not edit.
In brackets: what the method's reference implementation measured in f32 on a GPU, on other cuts of the same texts (\`bench/oracle.json\`).
A figure in **bold** is more than 15 % away from it, and by more than the engine's own noise; the deviations are listed and explained under each model.

KL is that of the next-token distributions, exact cache against restored cache, in nats per token; copy KL the same on tokens that repeat a passage of the prefix.
*Floor* is what clearing the three lowest mantissa bits of the exact cache costs: differences below it are none. [What the ratios count](accounting.md), [what else was tried](levers.md).
`;

/** The whole page. */
export function resultsPage({ models, explanations }: Evidence): string {
  const parts = [HEAD, proofText(models), ...models.map((model) => modelText(model, explanations))];
  return `${parts
    .filter((part) => part !== '')
    .join('\n')
    .trimEnd()}\n`;
}

/** What a file's name begins with that holds both codecs in one run, measured to be compared. */
const PROOF = 'proof';

/** Both codecs at equal loss, every model's, from runs made for it. */
function proofText(models: readonly ModelResults[]): string {
  const lines = models.flatMap(({ oracle, evaluations }) =>
    evaluations
      .filter(({ file }) => basename(file).startsWith(PROOF))
      .flatMap(({ result: { rows, settings } }) =>
        equalLines(rows).map((line) => [`${oracle.title}, ${settings.documents.length} documents`, ...line]),
      ),
  );
  if (lines.length === 0) return '';
  const heading = ['', ...EQUAL_HEADING, RETRIEVAL_HEADING];
  return `## Both codecs at equal loss\n\nEach model's in one run, read off between measured ratios and never beyond them; no retrieval where the exact cache answers nothing:\n\n${markdown(heading, lines)}`;
}

function modelText(model: ModelResults, explanations: Readonly<Record<string, string>>): string {
  const { id, oracle, evaluations, ablations, benches } = model;
  const title = `## ${oracle.title}\n`;
  if (evaluations.length + ablations.length + benches.length === 0) return `${title}\nNot measured yet.\n`;
  const compare = openComparison();
  const parts = [
    ...evaluations.map((one) => evaluationText(id, one, oracle, compare)),
    ...ablations.map((one) => ablationText(id, one, oracle, compare)),
    ...benches.map(({ file, result }) => {
      const { tokens, ratio, prefillMs, restoreMs, restoreSpeedup, machine } = result;
      return `### Speed\n\n${tokens} tokens at ${ratio}x: prefill ${(prefillMs / 1000).toFixed(2)} s, restore ${(restoreMs.median / 1000).toFixed(3)} s, ${restoreSpeedup.toFixed(1)} times faster. ${machine.processor.trim()}, ${machine.threads} threads, llama.cpp ${machine.engine} (\`${file}\`).\n`;
    }),
    losesText(evaluations),
    deviationsText(compare, explanations),
  ];
  return [title, ...parts.filter((part) => part !== '')].join('\n');
}

/** Tokens of the prefixes that the oracle's figures were measured on. */
const ORACLE_PREFIX = 3072;

function evaluationText(id: string, one: NamedResult<Evaluation>, oracle: Oracle, compare: Comparison): string {
  const { rows, floor, settings, closeUp } = one.result;
  const exact = settings.weights !== 'as-is';
  if (settings.documents.length === 0)
    return [`### ${runTitle(one.file)}\n`, runText(one), tasksText([floor, ...rows])].join('\n');
  // The oracle ran in f32 and on short prefixes: nothing else has a figure of its to stand beside.
  const reference =
    exact && settings.prefixTokens === ORACLE_PREFIX ? oracle : { ...oracle, rows: {}, ablations: {}, rivals: {} };
  const table = exact ? 'rows' : 'as-is';
  const plain = rows.filter(isPlainKvtc);
  const rivals = rows.filter((row) => !isPlainKvtc(row));
  const cells = (name: string, row: EvaluationRow, theirs: OracleFigures | undefined): string[] =>
    figureCells(`${id}/${name}/${row.treatment}`, row, theirs, floor, compare);
  const perplexity = (row: EvaluationRow): string => row.perplexityRestored.toFixed(2);
  const longer = settings.prefixTokens === ORACLE_PREFIX ? '' : `, prefixes of ${settings.prefixTokens} tokens`;
  return [
    `### ${runTitle(one.file)}: ${exact ? `weights in ${settings.weights}` : 'weights as published'}${longer}\n`,
    runText(one),
    markdown(
      ['', 'paper ratio', 'every byte', 'KL', 'copy KL', 'top-1', 'perplexity'],
      [
        ...plain.map((row) => [row.treatment, ...cells(table, row, oracleRow(row, reference)), perplexity(row)]),
        [...floorCells(floor, settings), floor.documents === settings.documents.length ? perplexity(floor) : '–'],
        ['exact', '1', '1', '0', '0', '100.0 %', (plain[0] ?? floor).perplexityExact.toFixed(2)],
      ],
    ),
    equalText(rows),
    byKind(plain),
    rivals.length === 0
      ? ''
      : `Rivals, same documents, same accounting:\n\n${markdown(
          ['', 'paper ratio', 'every byte', 'KL', 'copy KL', 'top-1'],
          rivals.map((row) => [row.treatment, ...cells(`${table} rivals`, row, reference.rivals[row.treatment])]),
        )}`,
    tasksText([...plain, ...rivals]),
    exact && closeUp !== undefined ? closeUpText(id, one.result, oracle, compare) : '',
  ]
    .filter((part) => part !== '')
    .join('\n');
}

/** Profiles called `20k` and the like are of so many thousand calibration rows. */
const CALIBRATION_ROWS = /^kvtc (\d+)k$/u;

/** The oracle has figures of the published codec at its default settings, and of some numbers of calibration rows. */
function oracleRow(
  row: EvaluationRow,
  { rows, ablations }: Pick<Oracle, 'rows' | 'ablations'>,
): OracleFigures | undefined {
  const series = seriesOf(row);
  const thousands = CALIBRATION_ROWS.exec(series ?? '')?.[1];
  if (thousands !== undefined) return ablations[`${row.ratio}x tokens ${thousands}000`];
  return series === 'kvtc' ? rows[`${row.ratio}`] : undefined;
}

const EQUAL_HEADING = ['no worse in KL and copy KL than', 'its ratios', 'codec', 'paper ratio', 'every byte'];
const RETRIEVAL_HEADING = 'retrieval no worse up to';

function equalText(rows: readonly EvaluationRow[]): string {
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

function figureCells(
  place: string,
  row: EvaluationRow,
  theirs: OracleFigures | undefined,
  floor: EvaluationRow,
  compare: Comparison,
): string[] {
  const ratio = (value: number): string => value.toFixed(2);
  return [
    compare.cell(`${place}/paper ratio`, row.paperRatio, theirs?.paperRatio, { format: ratio }),
    compare.cell(`${place}/every byte`, row.effectiveRatio, theirs?.effectiveRatio, { format: ratio }),
    compare.cell(`${place}/KL`, row.klNats, theirs?.klNats, { format: nats, floor: floor.klNats }),
    compare.cell(`${place}/copy KL`, row.copyKlNats, theirs?.copyKlNats, { format: nats, floor: floor.copyKlNats }),
    compare.cell(`${place}/top-1`, row.top1Agreement, theirs?.top1Agreement, { format: percent }),
  ];
}

function byKind(rows: readonly EvaluationRow[]): string {
  const kinds = Object.keys(rows[0]?.byKind ?? {});
  if (kinds.length < 2) return '';
  const lines = rows.map((row) => [
    row.treatment,
    ...kinds.map((kind) => nats(row.byKind[kind]?.klNats ?? Number.NaN)),
  ]);
  return `KL by kind of text:\n\n${markdown(['', ...kinds], lines)}`;
}

function tasksText(rows: readonly EvaluationRow[]): string {
  const tasks = [...new Set(rows.flatMap((row) => Object.keys(row.tasks ?? {})))];
  if (tasks.length === 0) return '';
  const cell = (row: EvaluationRow, task: string): string => {
    const figures = row.tasks?.[task];
    if (figures === undefined || figures.exactCorrect === 0) return '–';
    const kept = `${figures.correct} of ${figures.exactCorrect}`;
    return figures.klNats === null ? kept : `${kept}, ${nats(figures.klNats)}`;
  };
  const asked = tasks.map((task) => `${rows[0]?.tasks?.[task]?.questions ?? 0}`);
  return `Answers kept, of those that the exact cache gives, and KL on the answers:\n\n${markdown(
    ['', ...tasks],
    [...rows.map((row) => [row.treatment, ...tasks.map((task) => cell(row, task))]), ['asked', ...asked]],
  )}`;
}

/** Spectrum and plans of the profile, on the document that was looked at closely. */
function closeUpText(id: string, { closeUp }: Evaluation, oracle: Oracle, compare: Comparison): string {
  const spectrum = closeUp?.spectrum ?? null;
  if (closeUp === undefined || spectrum === null) return '';
  const energy = STREAMS.map((stream) => [
    `${stream}s`,
    ...ENERGY_SHARES.map((share, i) => {
      const { points, width } = spectrum[stream];
      const found = points.findLast(({ component }) => component <= share * width);
      const reached = (points.at(-1)?.component ?? 0) >= share * width;
      const place = `${id}/energy/${stream}s/${100 * share} %`;
      return compare.cell(place, reached ? found?.captured : null, oracle.energy?.[stream][i], { format: percent });
    }),
  ]);
  const plans = closeUp.ratios.flatMap(({ ratio, plans: planned, errors }) =>
    STREAMS.map((stream) => {
      const theirs = oracle.plans[`${ratio}`]?.[stream];
      const place = `${id}/plans/${ratio}x ${stream}s`;
      const predicted = stream === 'key' ? planned?.keyError : planned?.valueError;
      const whole = (value: number): string => `${value}`;
      return [
        `${ratio}x ${stream}s`,
        compare.cell(`${place}/error`, predicted, theirs?.error, { format: percent }),
        compare.cell(`${place}/rank`, planned?.[stream].rank, theirs?.rank, { format: whole }),
        compare.cell(`${place}/groups`, planned?.[stream].groups.length, theirs?.groups, { format: whole }),
        percent(errors[stream].total),
      ];
    }),
  );
  return [
    `Energy captured by the first components, by their share of the width, on ${closeUp.document.source} (${closeUp.document.kind}):\n`,
    markdown(['', ...ENERGY_SHARES.map((share) => `${100 * share} %`)], energy),
    'Plans, and the squared relative error they predict for held-out rows and make on that document:\n',
    markdown(['', 'error', 'rank', 'groups', 'on the document'], plans),
    ordersText(id, closeUp, oracle, compare),
  ].join('\n');
}

function ordersText(id: string, { byteOrders }: CloseUp, oracle: Oracle, compare: Comparison): string {
  if (byteOrders === null || byteOrders === undefined) return '';
  const { ratio } = byteOrders;
  const rows = STREAMS.map((stream) => {
    const cells = BYTE_ORDERS.map((order, i) => {
      const place = `${id}/orders/${ratio}x ${stream}s/${order}`;
      const theirs = ratio === 16 ? oracle.orders?.[stream][i] : undefined;
      return compare.cell(place, byteOrders[stream][order], theirs, { format: wholeNumber });
    });
    return [`${ratio}x ${stream}s`, ...cells];
  });
  return [
    `Bytes of ${wholeNumber(byteOrders.key.tokens)} tokens of a stream in one chunk, by the order that DEFLATE finds them in:\n`,
    markdown(['', 'packed', 'token by token', 'group by group', 'split planes (the codec’s)'], rows),
  ].join('\n');
}

function ablationText(
  id: string,
  one: NamedResult<import('../../src/evaluation/ablation/ablate.ts').Ablation>,
  oracle: Oracle,
  compare: Comparison,
): string {
  const { ablations, floor, settings } = one.result;
  const lines = ablations.map((row) => {
    const name = `${row.atRatio}x ${row.set} ${row.value}`;
    const theirs = {
      ...(settings.weights === 'as-is' ? undefined : oracle.ablations[name]),
      ...(row.set === 'chunk' && row.atRatio === 16 && oracle.chunks[`${row.value}`] !== undefined
        ? { paperRatio: oracle.chunks[`${row.value}`] as number }
        : undefined),
    };
    return [name, ...figureCells(`${id}/ablations/${name}`, row, theirs, floor, compare)];
  });
  const heading = ['', 'paper ratio', 'every byte', 'KL', 'copy KL', 'top-1'];
  return [`### ${runTitle(one.file)}\n`, runText(one), markdown(heading, [...lines, floorCells(floor, settings)])].join(
    '\n',
  );
}

/** An exact cache whose last bits are perturbed, on as many documents as it was measured on. */
function floorCells(floor: EvaluationRow, { documents }: Evaluation['settings']): string[] {
  return [
    floor.documents === documents.length ? 'floor' : `floor, first ${floor.documents}`,
    '–',
    '–',
    nats(floor.klNats),
    nats(floor.copyKlNats),
    percent(floor.top1Agreement),
  ];
}

function runText({ file, result }: NamedResult<Evaluation>): string {
  const { settings, machine, elapsedMs, engineMs, command, commit } = result;
  // All of it from the run file: the time says nothing.
  const time = engineMs === 0 ? 'measured before' : `${(elapsedMs / 60_000).toFixed(1)} minutes`;
  const kinds = new Map<string, number>();
  for (const { kind } of settings.documents) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  const documents = [...kinds].map(([kind, count]) => `${count} of ${kind}`).join(', ');
  const used = evaluatedProfiles(result);
  const profiles = used
    .map(({ name, id }) => `profile ${used.length === 1 ? '' : `${name} `}\`${id.slice(0, 12)}\``)
    .join(', ');
  const judged =
    settings.documents.length === 0
      ? 'Prefixes made up for the tasks'
      : `${settings.documents.length} ${settings.documents.length === 1 ? 'document' : 'documents'} (${documents}) of ${settings.prefixTokens} + ${settings.continuationTokens} tokens`;
  return [
    `${judged}, ${exactTokensText(result)}; ${profiles}, model \`${settings.modelFingerprint.slice(0, 12)}\`.`,
    `${machine.processor}, ${machine.threads} threads, llama.cpp ${machine.engine}, Node ${machine.node}; ${time}, at commit \`${(commit ?? 'not recorded').slice(0, 12)}\`: \`${command ?? 'not recorded'}\` (\`${file}\`).\n`,
  ].join('\n');
}

function deviationsText({ deviations }: Comparison, explanations: Readonly<Record<string, string>>): string {
  if (deviations.length === 0) return '';
  const lines = deviations.map(({ place, ours, theirs }) => {
    const why = explanations[place] ?? 'not explained yet';
    return `* ${place.split('/').slice(1).join(', ')}: ${Number(ours.toPrecision(3))} against ${theirs}. ${why}`;
  });
  return `### Deviations from the reference\n\n${lines.join('\n')}\n`;
}
