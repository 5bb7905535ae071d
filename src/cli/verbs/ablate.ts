// kvtc ablate: what each choice of the codec is worth on a model and texts.

import type { Ablation, AblationRow } from '../../evaluation/ablation/ablate.ts';
import { formatRatio, formatSmall, formatPercent, formatDuration, table } from '../format.ts';
import type { Verb } from '../verb.ts';
import { evaluationTexts } from './evaluation-texts.ts';
import { MODEL_POSITIONAL, PROFILE_OPTION, TASK_SYNTAX, TEXT_OPTION, commandLine, taskOptions } from './options.ts';

const SETS = [
  'sinks',
  'window',
  'plan',
  'split',
  'chunk',
  'entropy',
  'groups',
  'fp8',
  'layers',
  'tokens',
  'domain',
  'seed',
] as const;

export const verb: Verb = {
  syntax: {
    summary: 'Measure what each choice of the codec is worth on a model and texts',
    positionals: [MODEL_POSITIONAL],
    options: {
      profile: PROFILE_OPTION,
      text: TEXT_OPTION,
      set: { value: 'LIST', fallback: 'sinks,window,plan,split,chunk,entropy', help: 'what to vary' },
      ratios: { value: 'LIST', fallback: '16', help: 'ratios to compare at' },
      calibration: { value: 'PATH', many: true, help: 'other texts to plan on and calibrate with, a domain each' },
      'calibration-tokens': { value: 'N', fallback: '20000', help: 'tokens of one calibration' },
      prefix: { value: 'N', fallback: '3072', help: 'tokens whose cache is compressed' },
      continuation: { value: 'N', fallback: '1024', help: 'tokens predicted after it' },
      documents: { value: 'N', fallback: '6', help: 'documents cut from the texts; 0 runs tasks alone' },
      ...TASK_SYNTAX,
      weights: {
        value: 'exact|as-is',
        fallback: 'exact',
        help: 'run an f32 or f16 copy of the weights, or the file itself',
      },
      report: {
        value: 'OUT.html',
        help: 'also write one page with charts; looks closely at the first document for it',
      },
      run: { value: 'FILE', help: 'keep finished results there, to go on after an interruption' },
    },
    details: [
      'All variants run on the same documents, each prefilled once; a cache that comes out the same is judged once.',
      'Of coding: sinks, window, plan (bits or truncation), split (keys and values), chunk, entropy.',
      'Of planning, with --calibration: groups (sizes of groups), fp8 (its price).',
      'Of learning, with --calibration and a calibration for each value: layers (joined in one basis), tokens, domain, seed.',
    ].join('\n'),
  },
  async run(args, context) {
    const { ablate } = await import('../../evaluation/ablation/ablate.ts');
    const { cacheDirectory } = await import('../../models/cache-directory.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const { readTextFiles } = await import('../../models/text-files.ts');
    const options = {
      profilePath: args.text('profile') ?? '',
      sets: args.choices('set', SETS),
      ratios: args.positives('ratios'),
      calibrationTokens: args.integer('calibration-tokens', 512),
      prefixTokens: args.integer('prefix', 2),
      continuationTokens: args.integer('continuation', 2),
      documents: args.integer('documents', 0),
      tasks: taskOptions(args),
      weights: args.choice('weights', ['exact', 'as-is']),
      runPath: args.text('run'),
    };
    const reportPath = args.text('report');
    const modelPath = await resolveModel(args.positionals[0] ?? '');
    const texts = await evaluationTexts(args, context);
    const calibration = args.texts('calibration');
    const calibrationTexts = calibration.length === 0 ? [] : await readTextFiles(calibration, context);
    const ablation = await ablate({
      ...options,
      ...context,
      modelPath,
      texts,
      calibrationTexts,
      cacheDirectory: cacheDirectory(),
      command: commandLine(),
      closeUp: reportPath !== undefined,
    });
    if (reportPath !== undefined) {
      const { writeReport } = await import('../../evaluation/report/page.ts');
      await writeReport(reportPath, { evaluation: ablation, date: new Date() });
    }
    return { json: { ...ablation }, text: ablationText(ablation) };
  },
};

function ablationText({ ablations, floor, settings, machine, elapsedMs }: Ablation): string {
  const heading = ['', 'at', 'paper', 'effective', 'KL', 'copy KL', 'top-1'];
  const line = (row: AblationRow): string[] => [
    String(row.value),
    formatRatio(row.atRatio),
    row.paperRatio === null ? '-' : formatRatio(row.paperRatio),
    row.effectiveRatio === null ? '-' : formatRatio(row.effectiveRatio),
    formatSmall(row.klNats),
    formatSmall(row.copyKlNats),
    formatPercent(row.top1Agreement),
  ];
  const sets = [...new Set(ablations.map(({ set }) => set))];
  return [
    `${settings.model}, weights ${settings.weights}, ${settings.documents.length} documents of ` +
      `${settings.prefixTokens} + ${settings.continuationTokens} tokens; floor: KL ${formatSmall(floor.klNats)}, copy KL ${formatSmall(floor.copyKlNats)}`,
    ...sets.flatMap((set) => [
      '',
      table(
        ablations.filter((row) => row.set === set).map(line),
        ['left', ...heading.slice(1).map(() => 'right' as const)],
        [set, ...heading.slice(1)],
      ),
    ]),
    '',
    `${machine.processor}, ${machine.threads} threads, llama.cpp ${machine.engine}, in ${formatDuration(elapsedMs)}`,
  ].join('\n');
}
