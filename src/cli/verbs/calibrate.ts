// kvtc calibrate: texts → a profile of the model.

import { KvtcError } from '../../base/errors.ts';
import type { ModelCalibration } from '../../cache/calibrate.ts';
import { formatCount, formatDuration, formatPercent, formatRatio, profileSizeText, table } from '../format.ts';
import type { Verb } from '../verb.ts';
import { MODEL_POSITIONAL, TEXT_OPTION } from './options.ts';
import { tuningText } from './tune.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Learn the profile that a model needs, from texts',
    positionals: [MODEL_POSITIONAL],
    options: {
      text: TEXT_OPTION,
      output: { value: 'PROFILE', short: 'o', required: true, help: 'the profile to write' },
      tokens: { value: 'N', fallback: '20000', help: 'tokens to calibrate on' },
      rank: { value: 'R', fallback: '2048', help: 'components kept at most; wtc: of keys and of values on average' },
      seed: { value: 'S', fallback: '7', help: 'chooses texts and rows; the same seed gives the same profile' },
      ratios: { value: 'LIST', fallback: '8,16,32,64', help: 'paper: ratios to plan for' },
      codec: { value: 'wtc|paper', fallback: 'wtc', help: 'which codec the profile is for: ours or the published one' },
      sensitivity: { value: 'FILE|none', help: 'wtc: what errors of each head cost the output; measured by default' },
      'weigh-layers': {
        value: 'yes|no',
        fallback: 'no',
        help: 'wtc: measure what errors of each layer do to an exact copy of the model',
      },
      moments: { value: 'FILE', help: 'moments measured by kvtc_collect: the texts are then only held out' },
      'token-ids': {
        value: 'yes|no',
        help: 'wtc: leave out what token ids tell, by the model’s file [yes with --moments, else no]',
      },
      'layers-per-basis': { value: 'N', help: 'adjacent layers that one basis joins, fewer cost rate [all]' },
      tune: { value: 'N', fallback: '0', help: 'wtc: documents that steps are chosen on by measured loss; 0 for none' },
      part: { value: 'I/N', help: 'collect the I-th of N shares only and stop: PROFILE.work is the result' },
      parts: { value: 'DIR', many: true, help: 'shares collected elsewhere, with the same other arguments' },
    },
    details: [
      'More tokens make a better profile. Rank 2048 serves ratios of 16 and more; 8 wants about half the width of a row.',
      'An interrupted calibration goes on where it was when it is started again with the same arguments.',
      'wtc weighs errors by what they cost the output. It is measured by forward passes unless a file says it.',
      '--weigh-layers yes wants a copy in f32 or f16, and minutes of it: 3 for SmolLM2, 17 for a model of 1.5 billion.',
      'A profile made with --token-ids yes needs the model’s file to compress and to restore, and wants many --tokens.',
      '--tune N goes on with kvtc tune, on documents that the sample left of the texts, on exact weights.',
      'Shares may be collected one by one or on several machines: the profile then has the bytes of a single run.',
    ].join('\n'),
  },
  async run(args, context) {
    const { calibrate } = await import('../../cache/calibrate.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const { readTextFiles } = await import('../../models/text-files.ts');
    const { exactWeights } = await import('../../evaluation/exact-weights.ts');
    const { cacheDirectory } = await import('../../models/cache-directory.ts');
    const options = {
      output: args.text('output') ?? '',
      tokens: args.integer('tokens', 1),
      rank: args.integer('rank', 1),
      seed: args.integer('seed', 0),
      layersPerBasis: args.integer('layers-per-basis', 1),
      ratios: args.positives('ratios'),
      codec: args.choice('codec', ['wtc', 'paper']),
      sensitivity: args.text('sensitivity'),
      moments: args.text('moments'),
      tokenIds: args.has('token-ids') ? args.choice('token-ids', ['yes', 'no']) === 'yes' : undefined,
      part: parsePart(args.text('part')),
      parts: args.has('parts') ? args.texts('parts') : undefined,
    };
    const documents = args.integer('tune', 0) ?? 0;
    if (options.codec === 'paper' && documents > 0) {
      throw new KvtcError('KVTC_OPTION_INVALID', '--tune is for the codec wtc', { option: 'tune' });
    }
    if (options.codec !== 'paper' && args.has('ratios')) {
      throw new KvtcError('KVTC_OPTION_INVALID', '--ratios is for the codec paper: a wtc profile serves all of them', {
        option: 'ratios',
      });
    }
    const weighsLayers = args.choice('weigh-layers', ['yes', 'no']) === 'yes';
    if (weighsLayers && (options.codec === 'paper' || options.sensitivity === 'none')) {
      throw new KvtcError('KVTC_OPTION_INVALID', '--weigh-layers yes is for sensitivities of the codec wtc', {
        option: 'weigh-layers',
      });
    }
    const model = await resolveModel(args.positionals[0] ?? '');
    const texts = await readTextFiles(args.texts('text'), context);
    const exactModel = weighsLayers ? (await exactWeights(model, cacheDirectory(), context)).path : undefined;
    const result = await calibrate({ ...options, ...context, model, exactModel, texts });
    const plans = result.plans.map(({ ratio, key, value, keyError, valueError }) => ({
      ratio,
      keyRank: key.rank,
      valueRank: value.rank,
      keyError,
      valueError,
    }));
    if (options.codec === 'paper' || result.profileId === null || documents === 0) {
      return { json: { ...result, plans }, text: calibrationText(result) };
    }
    const { CALIBRATION_DEFAULTS } = await import('../../calibration/calibrate.ts');
    const { tuneProfile } = await import('../../evaluation/tuning/tune.ts');
    const tuning = await tuneProfile({
      modelPath: model,
      profilePath: result.path,
      texts,
      calibrated: { tokens: result.tokens, seed: options.seed ?? CALIBRATION_DEFAULTS.seed },
      documents,
      cacheDirectory: cacheDirectory(),
      ...context,
    });
    const { steps, ...tuned } = tuning;
    return {
      json: { ...result, plans, steps, tuning: tuned },
      text: `${calibrationText({ ...result, steps })}\n\n${tuningText(tuning)}`,
    };
  },
};

/** `2/3` is the second of three shares. */
function parsePart(text: string | undefined): { index: number; count: number } | undefined {
  if (text === undefined) return undefined;
  const [, share = '', of = ''] = /^(\d+)\/(\d+)$/u.exec(text) ?? [];
  const [index, count] = [Number(share), Number(of)];
  if (index >= 1 && index <= count) return { index: index - 1, count };
  throw new KvtcError('KVTC_OPTION_INVALID', `--part ${text}: expected I/N with 1 ≤ I ≤ N`, {
    option: 'part',
    got: text,
  });
}

function sensitivityText({ sensitivity, layersWeighed, sensitivityMs, predicted }: ModelCalibration): string {
  if (sensitivity === 'none') return 'sensitivity: none, all errors count alike';
  const time = sensitivityMs > 0 ? ` in ${formatDuration(sensitivityMs)}` : '';
  const source = sensitivity === 'forward' && sensitivityMs > 0 ? 'measured by forward passes' : 'from a file';
  const how = `${source}${layersWeighed ? ', layers weighed by losses' : ''}${time}`;
  const tokens =
    predicted === null
      ? 'all tokens coded alike'
      : `${formatPercent(predicted.key)} (keys) and ${formatPercent(predicted.value)} (values) of tokens' importance predicted`;
  return `sensitivity: ${sensitivity}, ${how}; ${tokens}`;
}

function calibrationText(result: ModelCalibration): string {
  if (result.profileId === null) {
    return `${result.path}: ${formatCount(result.rows)} rows collected; give it to --parts of the run that fits the profile`;
  }
  const { elapsedMs, rank, prefillMs } = result;
  const plans = result.plans.map((plan) => [
    `${plan.ratio}x`,
    `${plan.key.rank}`,
    `${plan.value.rank}`,
    formatPercent(plan.keyError),
    formatPercent(plan.valueError),
  ]);
  const steps = result.steps.map((point) => [
    formatRatio(point.ratio),
    (2 ** (point.key.stepIndex / 256)).toPrecision(3),
    `${point.key.rank}`,
    `${point.value.rank}`,
  ]);
  const right = 'right' as const;
  return [
    `${result.path}: profile ${result.profileId.slice(0, 12)}, rank ${rank.key} for keys, ${rank.value} for values`,
    ...(result.matrixEntries === undefined
      ? []
      : [
          `matrices of ${profileSizeText({ matrixEntries: result.matrixEntries, parameterShare: result.parameterShare ?? null })}`,
        ]),
    `${formatCount(result.tokens)} tokens of ${formatCount(result.documents)} documents; ` +
      `prefill ${formatDuration(prefillMs)}, moments ${formatDuration(elapsedMs.collect - prefillMs)}, ` +
      `bases ${formatDuration(elapsedMs.basis)}, plans ${formatDuration(elapsedMs.plan)}`,
    ...(result.sensitivity === null ? [] : [sensitivityText(result)]),
    '',
    plans.length > 0
      ? table(
          plans,
          [right, right, right, right, right],
          ['plan', 'key rank', 'value rank', 'key error', 'value error'],
        )
      : table(steps, [right, right, right, right], ['ratio', 'step', 'key rank', 'value rank']),
  ].join('\n');
}
