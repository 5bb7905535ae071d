// Options that several verbs share, said once. Does not know: what verbs do with them.

import type { OptionSpec } from '../verb.ts';

export const MODEL_POSITIONAL = { name: 'MODEL', help: 'path of a GGUF file, or the name of a pulled model' } as const;

export const PROFILE_OPTION: OptionSpec = {
  value: 'PROFILE',
  required: true,
  help: 'the profile that kvtc calibrate made for the model',
};

export const TEXT_OPTION: OptionSpec = {
  value: 'PATH',
  many: true,
  required: true,
  help: 'text files or folders of them; each path gets the same share',
};
