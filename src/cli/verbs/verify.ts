// kvtc verify: reads everything in a file and checks it.

import type { Verb } from '../verb.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Check every byte of a container or profile against its checksums',
    positionals: [{ name: 'FILE', help: 'a .kvtc container, a profile or a GGUF model' }],
    options: {},
    details: 'Exit code 3 and the kind of damage when something is wrong. Of GGUF files only the directory is checked.',
  },
  async run(args, { signal }) {
    const { verify } = await import('../../cache/inspect.ts');
    const path = args.positionals[0] ?? '';
    const { kind } = await verify(path, { signal });
    return { json: { path, kind, ok: true }, text: `${path}: sound ${kind}` };
  },
};
