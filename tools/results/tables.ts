// docs/results.md: per model the tables of the evidence by our own code, the oracle's figure in brackets behind each of
// ours. Does not know: how anything was measured, where files lie.

import { BYTE_ORDERS } from '../../src/evaluation/byte-orders.ts';
import type { CloseUp } from '../../src/evaluation/close-up.ts';
import type { Evaluation } from '../../src/evaluation/evaluate.ts';
import { isPlainKvtc } from '../../src/evaluation/report/comparison.ts';
import { evaluatedProfiles, exactTokensText, seriesOf } from '../../src/evaluation/series.ts';
import type { EvaluationRow } from '../../src/evaluation/summary.ts';
import type { Comparison } from './compare.ts';
import { deviationsText, openComparison } from './compare.ts';
import { equalText, proofText } from './equal.ts';
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
Where the reference tells KL by kind of text and a run's documents are not of all kinds alike, the mean of its kinds stands beside it.

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

function modelText(model: ModelResults, explanations: Readonly<Record<string, string>>): string {
  const { id, oracle, evaluations, ablations, benches } = model;
  const title = `## ${oracle.title}\n`;
  if (evaluations.length + ablations.length + benches.length === 0) return `${title}\nNot measured yet.\n`;
  const comparisons: Comparison[] = [];
  const compareRun = ({ file }: { readonly file: string }): Comparison => {
    const compare = openComparison(runTitle(file));
    comparisons.push(compare);
    return compare;
  };
  const parts = [
    ...evaluations.map((one) => evaluationText(id, one, oracle, compareRun(one))),
    ...ablations.map((one) => ablationText(id, one, oracle, compareRun(one))),
    ...benches.map(({ file, result }) => {
      const { tokens, ratio, prefillMs, restoreMs, restoreSpeedup, machine } = result;
      return `### Speed\n\n${tokens} tokens at ${ratio}x: prefill ${(prefillMs / 1000).toFixed(2)} s, restore ${(restoreMs.median / 1000).toFixed(3)} s, ${restoreSpeedup.toFixed(1)} times faster. ${machine.processor.trim()}, ${machine.threads} threads, llama.cpp ${machine.engine} (\`${file}\`).\n`;
    }),
    losesText(evaluations),
    deviationsText(
      comparisons.flatMap(({ deviations }) => deviations),
      explanations,
    ),
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
    exact && settings.prefixTokens === ORACLE_PREFIX
      ? oracle
      : { ...oracle, rows: {}, kinds: {}, ablations: {}, rivals: {} };
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
        ...plain.map((row) => [
          row.treatment,
          ...cells(table, row, oracleRow(row, reference, settings.documents)),
          perplexity(row),
        ]),
        [...floorCells(floor, settings), floor.documents === settings.documents.length ? perplexity(floor) : '–'],
        ['exact', '1', '1', '0', '0', '100.0 %', (plain[0] ?? floor).perplexityExact.toFixed(2)],
      ],
    ),
    equalText(rows),
    byKind(`${id}/${table} by kind`, plain, reference, floor, compare),
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

/**
 * The oracle has figures of the published codec at its default settings, and of some numbers of calibration rows. Where
 * it tells KL by kind and the documents are not of all kinds alike, KL is the mean of their kinds'.
 */
function oracleRow(
  row: EvaluationRow,
  { rows, kinds, ablations }: Pick<Oracle, 'rows' | 'kinds' | 'ablations'>,
  documents: Evaluation['settings']['documents'],
): OracleFigures | undefined {
  const series = seriesOf(row);
  const thousands = CALIBRATION_ROWS.exec(series ?? '')?.[1];
  if (thousands !== undefined) return ablations[`${row.ratio}x tokens ${thousands}000`];
  const figures = series === 'kvtc' ? rows[`${row.ratio}`] : undefined;
  const ofKind = kinds[`${row.ratio}`];
  if (figures === undefined || ofKind === undefined) return figures;
  const counts = Object.entries(ofKind).map(([kind, klNats]) => ({
    klNats,
    documents: documents.filter((document) => document.kind === kind).length,
  }));
  const known = counts.reduce((sum, one) => sum + one.documents, 0);
  if (known < documents.length || counts.every((one) => one.documents === counts[0]?.documents)) return figures;
  return { ...figures, klNats: counts.reduce((sum, one) => sum + one.klNats * one.documents, 0) / known };
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

function byKind(
  place: string,
  rows: readonly EvaluationRow[],
  oracle: Pick<Oracle, 'kinds'>,
  floor: EvaluationRow,
  compare: Comparison,
): string {
  const kinds = Object.keys(rows[0]?.byKind ?? {});
  if (kinds.length < 2) return '';
  // With one document of a kind the kinds are the documents.
  const spread = rows.some(({ byDocument = [] }) => byDocument.length > kinds.length);
  const lines = rows.map((row) => {
    const theirs = seriesOf(row) === 'kvtc' ? oracle.kinds[`${row.ratio}`] : undefined;
    const cells = kinds.map((kind) =>
      compare.cell(`${place}/${row.treatment}/${kind} KL`, row.byKind[kind]?.klNats, theirs?.[kind], {
        format: nats,
        floor: floor.byKind[kind]?.klNats ?? floor.klNats,
      }),
    );
    return [row.treatment, ...cells, ...(spread ? documentRange(row) : [])];
  });
  const heading = ['', ...kinds, ...(spread ? ['least of a document', 'most of a document'] : [])];
  return `KL by kind of text:\n\n${markdown(heading, lines)}`;
}

function documentRange({ byDocument = [] }: EvaluationRow): string[] {
  const all = byDocument.map(({ klNats }) => klNats);
  return all.length === 0 ? ['–', '–'] : [nats(Math.min(...all)), nats(Math.max(...all))];
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
