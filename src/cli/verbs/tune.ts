// kvtc tune: chooses what a wtc profile's steps depend on by measured loss at equal size.

import type { Tuning } from '../../evaluation/tuning/tune.ts';
import { formatDuration, formatRatio, formatSmall, table } from '../format.ts';
import type { Verb } from '../verb.ts';
import { MODEL_POSITIONAL, PROFILE_OPTION, TEXT_OPTION } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Choose a wtc profile’s token exponent and key/value steps by measured loss',
    positionals: [MODEL_POSITIONAL],
    options: {
      profile: { ...PROFILE_OPTION, help: 'the profile of codec wtc to rewrite' },
      text: { ...TEXT_OPTION, help: 'text files or folders that it was not calibrated on' },
      documents: { value: 'N', fallback: '3', help: 'documents cut from the texts; more make a surer choice' },
      ratio: { value: 'R', fallback: '48', help: 'where settings are compared: the table’s point nearest to it' },
      prefix: { value: 'N', fallback: '1536', help: 'tokens whose cache is compressed' },
      continuation: { value: 'N', fallback: '384', help: 'tokens predicted after it' },
      weights: {
        value: 'exact|as-is',
        fallback: 'exact',
        help: 'run an f32 or f16 copy of the weights, or the file itself',
      },
    },
    details: [
      'kvtc calibrate --tune does it at its end; do it again with prompts of your own, or with more documents.',
      'Settings are coded to the same bytes and judged by KL and by KL while copying, of which neither may get 5 % worse.',
      'What was tried is kept in the profile. With new steps it loses its measured quality: measure that again',
      '(kvtc verify --quality). Containers coded before decode as before.',
    ].join('\n'),
  },
  async run(args, context) {
    const { tuneProfile } = await import('../../evaluation/tuning/tune.ts');
    const { cacheDirectory } = await import('../../models/cache-directory.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const { readTextFiles } = await import('../../models/text-files.ts');
    const options = {
      profilePath: args.text('profile') ?? '',
      documents: args.integer('documents', 1),
      ratio: args.positive('ratio'),
      prefixTokens: args.integer('prefix', 2),
      continuationTokens: args.integer('continuation', 2),
      weights: args.choice('weights', ['exact', 'as-is']),
      cacheDirectory: cacheDirectory(),
    };
    const modelPath = await resolveModel(args.positionals[0] ?? '');
    const texts = await readTextFiles(args.texts('text'), context);
    const tuning = await tuneProfile({ ...options, ...context, modelPath, texts });
    const { profilePath: path } = options;
    return { json: { path, ...tuning }, text: `${path}: ${tuningText(tuning)}` };
  },
};

/** The table of what was tried, and what came of it. */
export function tuningText({ record, changed, droppedQuality, elapsedMs }: Tuning): string {
  if (record === null) return 'not tuned';
  const rows = record.candidates.map(({ exponent, valueOffset, klNats, copyKlNats }, i) => [
    i === record.chosen ? '*' : '',
    `${exponent}`,
    (2 ** (valueOffset / 256)).toFixed(2),
    formatSmall(klNats),
    formatSmall(copyKlNats),
  ]);
  const right = 'right' as const;
  const documents = `${record.documents.length} ${record.documents.length === 1 ? 'document' : 'documents'}`;
  return [
    `${changed ? 'tuned: new steps' : 'tuned: the steps stay'}, by ${record.candidates.length} settings of the size of ` +
      `${formatRatio(record.ratio)} on ${documents}, in ${formatDuration(elapsedMs)}`,
    ...(droppedQuality > 0 ? [`${droppedQuality} quality points of the old steps are gone from it`] : []),
    '',
    table(rows, [right, right, right, right, right], ['', 'exponent', 'value/key step', 'KL', 'copy KL']),
  ].join('\n');
}
