// kvtc resume: restores a container into the model and goes on from there.

import { formatCount, formatDuration } from '../format.ts';
import type { Verb } from '../verb.ts';
import { MODEL_POSITIONAL, PROFILE_OPTION } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Restore a container into the model and generate text from there',
    positionals: [MODEL_POSITIONAL, { name: 'FILE.kvtc', help: 'a container of the model' }],
    options: {
      profile: PROFILE_OPTION,
      prompt: { value: 'TEXT', required: true, help: 'text that follows what the container holds' },
      tokens: { value: 'N', short: 'n', fallback: '64', help: 'tokens to generate at most' },
    },
  },
  async run(args, context) {
    const { resume } = await import('../../cache/prompt.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const [model = '', container = ''] = args.positionals;
    const prompt = args.text('prompt') ?? '';
    const maxTokens = args.integer('tokens', 1);
    const profile = args.text('profile') ?? '';
    const path = await resolveModel(model);
    let begun = false;
    const onText = (text: string): void => {
      context.print(begun ? text : prompt + text);
      begun = true;
    };
    const result = await resume({ ...context, model: path, container, profile, prompt, maxTokens, onText });
    const timing =
      `${formatCount(result.restoredTokens)} tokens restored in ${formatDuration(result.restoreMs)}, ` +
      `${formatCount(result.tokens.length)} generated in ${formatDuration(result.generateMs)}`;
    return { json: { ...result, tokens: [...result.tokens] }, text: `\n\n(${timing})` };
  },
};
