// kvtc evaluate: what each ratio of profiles costs on a model and texts.

import { equalQuality, equalRatioText } from '../../evaluation/equal-quality.ts';
import type { Evaluation } from '../../evaluation/evaluate.ts';
import { exactTokensText } from '../../evaluation/series.ts';
import type { EvaluationRow } from '../../evaluation/summary.ts';
import { formatDuration, formatPercent, formatRatio, formatSmall, table } from '../format.ts';
import type { Verb } from '../verb.ts';
import { evaluationTasksText } from './evaluation-tables.ts';
import { evaluationTexts } from './evaluation-texts.ts';
import { commandLine, MODEL_POSITIONAL, PROFILE_OPTION, TASK_SYNTAX, TEXT_OPTION, taskOptions } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Measure what each ratio costs on a model and texts',
    positionals: [MODEL_POSITIONAL],
    options: {
      profile: PROFILE_OPTION,
      text: TEXT_OPTION,
      also: {
        value: 'PROFILE',
        many: true,
        help: 'further profiles of the model, of either codec, on the same documents and prefixes',
      },
      ratios: {
        value: 'LIST',
        fallback: 'all of a profile',
        help: 'ratios to measure; each profile takes those it serves',
      },
      prefix: { value: 'N', fallback: '3072', help: 'tokens whose cache is compressed' },
      continuation: { value: 'N', fallback: '1024', help: 'tokens predicted after it' },
      documents: { value: 'N', fallback: '6', help: 'documents cut from the texts; 0 runs tasks alone' },
      ...TASK_SYNTAX,
      rivals: { value: 'LIST', help: 'rival codecs beside it: rows, native, native-plain' },
      weights: {
        value: 'exact|as-is',
        fallback: 'exact',
        help: 'run an f32 or f16 copy of the weights, or the file itself',
      },
      sinks: { value: 'N', fallback: '4', help: 'oldest tokens treated with care' },
      'sink-mode': { value: 'exact|finer', help: 'of wtc: all sinks exact, or the first alone (its default)' },
      window: { value: 'N', fallback: '128', help: 'newest tokens treated with care' },
      'window-mode': { value: 'exact|finer', help: 'of wtc: code the window finer (its default) or keep it exact' },
      report: {
        value: 'OUT.html',
        help: 'also write one page with charts; looks closely at the first document for it',
      },
      run: { value: 'FILE', help: 'keep finished results there, to go on after an interruption' },
    },
    details: [
      'KL is that of the next-token distributions, exact cache against restored cache, in nats per token.',
      'Quantised weights hide part of what a codec does, so a copy in f32 or f16 is made once and kept in the cache folder.',
      'Tasks are made up from the seed and the texts, or read from files named .jsonl (docs/tasks.md).',
      'Questions that the exact cache itself fails are counted and left out of the averages.',
      'Rivals: rows are quantisers, per-head PCA and eviction on the rows of the exact cache; native are the cache types',
      'of the engine, native-plain the same without the rotation that the engine puts before them.',
      'The floor is what the rounding of the engine itself does: differences below it are no differences.',
      'paper counts as the paper does, without a window kept exact; effective counts every byte.',
      'Beside a profile of the paper’s codec, others are also read off at its losses, between measured ratios.',
    ].join('\n'),
  },
  async run(args, context) {
    const { evaluate } = await import('../../evaluation/evaluate.ts');
    const { cacheDirectory } = await import('../../models/cache-directory.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const options = {
      profilePath: args.text('profile') ?? '',
      alsoProfilePaths: args.texts('also'),
      sinkMode: args.choice('sink-mode', ['exact', 'finer']),
      windowMode: args.choice('window-mode', ['exact', 'finer']),
      ratios: args.positives('ratios'),
      prefixTokens: args.integer('prefix', 2),
      continuationTokens: args.integer('continuation', 2),
      documents: args.integer('documents', 0),
      tasks: taskOptions(args),
      rivals: args.choices('rivals', ['rows', 'native', 'native-plain']),
      weights: args.choice('weights', ['exact', 'as-is']),
      sinks: args.integer('sinks', 0),
      window: args.integer('window', 0),
      runPath: args.text('run'),
    };
    const reportPath = args.text('report');
    const modelPath = await resolveModel(args.positionals[0] ?? '');
    const texts = await evaluationTexts(args, context);
    const evaluation = await evaluate({
      ...options,
      ...context,
      modelPath,
      texts,
      cacheDirectory: cacheDirectory(),
      command: commandLine(),
      closeUp: reportPath !== undefined,
    });
    if (reportPath !== undefined) {
      const { writeReport } = await import('../../evaluation/report/page.ts');
      await writeReport(reportPath, { evaluation, date: new Date() });
    }
    return { json: { ...evaluation }, text: evaluationText(evaluation) };
  },
};

/** The table of an evaluation, with what it was measured on. */
export function evaluationText(evaluation: Evaluation): string {
  const { rows, floor, settings, machine, elapsedMs, engineMs } = evaluation;
  const line = (row: EvaluationRow, name: string): string[] => [
    name,
    row.paperRatio === null ? '-' : formatRatio(row.paperRatio),
    row.effectiveRatio === null ? '-' : formatRatio(row.effectiveRatio),
    formatSmall(row.klNats),
    formatSmall(row.copyKlNats),
    formatPercent(row.top1Agreement),
    row.perplexityExact.toFixed(3),
    row.perplexityRestored.toFixed(3),
    row.paperRatio === null ? '-' : formatDuration(row.restoreMs),
    row.paperRatio === null ? '-' : formatRatio(row.prefillMs / row.restoreMs),
  ];
  const heading = [
    '',
    'paper',
    'effective',
    'KL',
    'copy KL',
    'top-1',
    'ppl exact',
    'ppl restored',
    'restore',
    'prefill/restore',
  ];
  const kinds = new Map<string, number>();
  for (const { kind } of settings.documents) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  const documents = [...kinds].map(([kind, count]) => `${count} of ${kind}`).join(', ');
  return [
    `${settings.model}, weights ${settings.weights}, ${settings.prefixTokens} + ${settings.continuationTokens} tokens`,
    exactTokensText(evaluation),
    `documents: ${documents}`,
    '',
    table(
      [...rows.map((row) => line(row, row.treatment)), line(floor, 'floor')],
      ['left', ...heading.slice(1).map(() => 'right' as const)],
      heading,
    ),
    ...equalQualityText(evaluation),
    ...evaluationTasksText([...rows, floor]),
    '',
    `${machine.processor}, ${machine.threads} threads, llama.cpp ${machine.engine}, in ${formatDuration(elapsedMs)}, ` +
      `${formatPercent(engineMs / elapsedMs)} of it the engine's`,
  ].join('\n');
}

function equalQualityText({ rows }: Evaluation): string[] {
  const found = equalQuality(rows);
  if (found.length === 0) return [];
  const both = (paper: string, effective: string): string => `${paper}, effective ${effective}`;
  return [
    '',
    'no worse in KL and copy KL than',
    ...found.map(({ series, against, paperRatio, effectiveRatio, retrievalRatio }) => {
      const { paperRatio: ofPaper, effectiveRatio: everyByte } = against;
      const given = both(formatRatio(ofPaper ?? 1), formatRatio(everyByte ?? 1));
      return `  ${against.treatment} (${given}): ${series} at ${both(equalRatioText(paperRatio), equalRatioText(effectiveRatio))}${
        retrievalRatio === null ? '' : `; in retrieval up to ${equalRatioText(retrievalRatio)}`
      }`;
    }),
  ];
}
