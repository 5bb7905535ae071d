// kvtc restore: a container → state bytes that an engine takes.

import { formatBytes, formatCount, formatDuration } from '../format.ts';
import type { Verb } from '../verb.ts';
import { PROFILE_OPTION } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Restore a container to a state file that llama.cpp takes',
    positionals: [{ name: 'FILE.kvtc', help: 'a container' }],
    options: {
      profile: PROFILE_OPTION,
      output: { value: 'STATE', short: 'o', required: true, help: 'the state to write' },
      model: {
        value: 'MODEL',
        help: 'path or name of the model, for profiles that need it (inspect tells)',
      },
      format: {
        value: 'file|blob',
        fallback: 'file',
        help: 'state file with token ids, or the bare bytes of one sequence',
      },
    },
    details: [
      'file: for llama_state_seq_load_file and the loadStateFromFile of node-llama-cpp.',
      'blob: for llama_state_seq_set_data.',
    ].join('\n'),
  },
  async run(args, context) {
    const output = args.text('output') ?? '';
    const format = args.choice('format', ['file', 'blob']) ?? 'file';
    const { restore } = await import('../../cache/coder.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const container = args.positionals[0] ?? '';
    const name = args.text('model');
    const model = name === undefined ? undefined : await resolveModel(name);
    const profile = args.text('profile') ?? '';
    const result = await restore({ ...context, container, profile, model, output, format });
    const { tokenCount, elapsedMs } = result;
    const stateBytes = result.state.length;
    return {
      json: { output, format, tokenCount, stateBytes, elapsedMs },
      text: `${output}: ${formatCount(tokenCount)} tokens, ${formatBytes(stateBytes)}; took ${formatDuration(elapsedMs)}`,
    };
  },
};
