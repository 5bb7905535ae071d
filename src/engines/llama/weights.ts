// A model's weight matrices by name. Does not know what they are for, or how quantised values become numbers.

import { KvtcError } from '../../base/errors.ts';
import type { Gguf, GgufTensor } from './gguf.ts';

/** The matrix of that name. Throws KVTC_MODEL_UNSUPPORTED where there is none of (quantised) floats. */
export function weightMatrix({ tensors }: Gguf, name: string): GgufTensor {
  const tensor = tensors.get(name);
  if (tensor?.dims.length === 2 && /^(b?f\d+|i?q\d.*|tq\d.*)$/u.test(tensor.type)) return tensor;
  const found = tensor === undefined ? 'missing' : `${tensor.type} [${tensor.dims.join(', ')}]`;
  const message = `${name} is ${found}; expected a matrix of (quantised) floats`;
  throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { tensor: name });
}
