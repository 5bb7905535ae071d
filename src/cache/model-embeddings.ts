// A model's input embeddings as numbers, for codecs that expect something of a token from its id. Reads the GGUF's own
// rows; the engine need not be open. Does not know what is expected.

import { KvtcError } from '../base/errors.ts';
import type { EmbeddingSource } from '../calibration/token-means.ts';
import type { Gguf } from '../engines/llama/gguf.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import { readEmbeddingRows } from '../engines/llama/token-embeddings.ts';
import { modelIdentity } from '../engines/llama/architecture.ts';
import { dequantise } from '../linalg/ggml/dequantise.ts';
import type { Profile } from '../profile/profile.ts';

/** The source over an opened GGUF. Reads as readEmbeddingRows and throws as it does. */
export function ggufEmbeddings(gguf: Gguf): EmbeddingSource {
  return async (ids) => {
    const { typeCode, width, bytes } = await readEmbeddingRows(gguf, ids);
    return dequantise(typeCode, bytes, ids.length, width);
  };
}

/**
 * The source that a profile with token means needs, from the model it was made for; the file is read when first needed.
 * `modelPath` undefined: the source throws KVTC_OPTION_INVALID. It throws KVTC_MODEL_MISMATCH for another model.
 */
export function profileEmbeddings(profile: Profile, modelPath: string | undefined): EmbeddingSource {
  let source: Promise<EmbeddingSource> | null = null;
  const open = async (): Promise<EmbeddingSource> => {
    if (modelPath === undefined) {
      throw new KvtcError(
        'KVTC_OPTION_INVALID',
        `the profile expects part of each token from the embeddings of model ${profile.model.name}: name its GGUF file as the model`,
        { option: 'model' },
      );
    }
    const gguf = await readGguf(modelPath);
    const { fingerprint } = await modelIdentity(gguf);
    if (fingerprint !== profile.model.fingerprint) {
      throw new KvtcError(
        'KVTC_MODEL_MISMATCH',
        `${modelPath} is another model (${fingerprint.slice(0, 12)}) than the profile's (${profile.model.fingerprint.slice(0, 12)})`,
        { path: modelPath, got: fingerprint, expected: profile.model.fingerprint },
      );
    }
    return ggufEmbeddings(gguf);
  };
  return async (ids) => {
    source ??= open();
    const read = await source.catch((error: unknown) => {
      source = null; // the file may be there next time
      throw error;
    });
    return read(ids);
  };
}
