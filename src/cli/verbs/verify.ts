// kvtc verify: reads everything in a file and checks it; and, if asked, measures again what a profile costs.

import { KvtcError } from '../../base/errors.ts';
import type { Arguments, Outcome, Verb, VerbContext } from '../verb.ts';
import { evaluationText } from './evaluate.ts';
import { evaluationTexts } from './evaluation-texts.ts';
import { TEXT_OPTION, commandLine } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Check every byte of a container or profile against its checksums',
    positionals: [{ name: 'FILE', help: 'a .kvtc container, a profile or a GGUF model' }],
    options: {
      quality: { value: 'MODEL', help: 'of a profile: measure what its ratios cost on --text, and write that into it' },
      text: { ...TEXT_OPTION, required: false, help: 'with --quality: text files or folders of them' },
      ratios: { value: 'LIST', fallback: 'all of the profile', help: 'with --quality: ratios to measure' },
      prefix: { value: 'N', fallback: '3072', help: 'with --quality: tokens whose cache is compressed' },
      continuation: { value: 'N', fallback: '1024', help: 'with --quality: tokens predicted after it' },
      documents: { value: 'N', fallback: '6', help: 'with --quality: documents cut from the texts' },
      weights: {
        value: 'exact|as-is',
        fallback: 'exact',
        help: 'with --quality: run an f32 or f16 copy of the weights, or the file itself',
      },
    },
    details: [
      'Exit code 3 and the kind of damage when something is wrong. Of GGUF files only the directory is checked.',
      'What --quality finds is shown by kvtc inspect, and kvtc compress --max-kl goes by it.',
      'Profiles of wtc serve every ratio; a ladder from 8 to 128 is measured.',
    ].join('\n'),
  },
  async run(args, context) {
    const { verify } = await import('../../cache/inspect.ts');
    const path = args.positionals[0] ?? '';
    const { kind } = await verify(path, { signal: context.signal });
    const model = args.text('quality');
    if (model !== undefined) {
      if (kind === 'profile') return measure(args, context, path, model);
      throw new KvtcError('KVTC_OPTION_INVALID', `--quality measures profiles, and ${path} is a ${kind}`);
    }
    const stray = ['text', 'ratios', 'prefix', 'continuation', 'documents', 'weights'].find((name) => args.has(name));
    if (stray !== undefined) throw new KvtcError('KVTC_OPTION_INVALID', `--${stray} goes with --quality MODEL`);
    return { json: { path, kind, ok: true }, text: `${path}: sound ${kind}` };
  },
};

async function measure(args: Arguments, context: VerbContext, path: string, model: string): Promise<Outcome> {
  const { measureQuality } = await import('../../evaluation/measure-quality.ts');
  const { cacheDirectory } = await import('../../models/cache-directory.ts');
  const { resolveModel } = await import('../../models/pull.ts');
  if (!args.has('text')) throw new KvtcError('KVTC_OPTION_INVALID', '--quality needs --text PATH');
  const options = {
    profilePath: path,
    ratios: args.positives('ratios'),
    prefixTokens: args.integer('prefix', 2),
    continuationTokens: args.integer('continuation', 2),
    documents: args.integer('documents', 1),
    weights: args.choice('weights', ['exact', 'as-is']),
    cacheDirectory: cacheDirectory(),
    command: commandLine(),
  };
  const modelPath = await resolveModel(model);
  const texts = await evaluationTexts(args, context);
  const { points, evaluation } = await measureQuality({ ...options, ...context, modelPath, texts });
  return {
    json: { path, kind: 'profile', ok: true, quality: points },
    text: [
      evaluationText(evaluation),
      '',
      `${path}: sound profile; wrote ${points.length} quality points into it`,
    ].join('\n'),
  };
}
