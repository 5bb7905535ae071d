// The copy of a model whose arithmetic does not hide what a codec does: its own weights in f32 or f16, made by the
// engine's quantiser and kept. Quantised weights make the engine round activations, and any change of a cache flips
// roundings (evidence: a change worth 1.6e-5 nats reads as 2.9e-3). Does not know: caches, profiles, evaluations.

import { createHash } from 'node:crypto';
import { access, mkdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { writeFailed } from '../base/atomic-file.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import { quantizeModel } from '../engines/llama/session.ts';
import { withFileLock } from '../models/lock.ts';

/** Above this an f16 copy is made: 3 GB holds models of 750 M parameters in f32. */
const F32_LIMIT_BYTES = 3e9;

export interface ExactWeights {
  readonly path: string;
  /** Type of the weights that run. */
  readonly type: 'f32' | 'f16';
  /** False when the model's own file is of that type already. */
  readonly copied: boolean;
}

/**
 * Finds or makes the exact copy of a model in `directory` (created when missing). The copy is named by path, length and
 * time of the original, and appears whole or not at all. Throws KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED,
 * KVTC_ENGINE_FAILED, KVTC_WRITE_FAILED, KVTC_ABORTED.
 */
export async function exactWeights(
  modelPath: string,
  directory: string,
  options: RunOptions = {},
): Promise<ExactWeights> {
  throwIfAborted(options.signal);
  const gguf = await readGguf(modelPath);
  const tensors = [...gguf.tensors.values()];
  const values = tensors.reduce((sum, { dims }) => sum + dims.reduce((product, dim) => product * dim, 1), 0);
  const type = values * 4 <= F32_LIMIT_BYTES ? 'f32' : 'f16';
  if (tensors.every((tensor) => tensor.type === 'f32')) return { path: modelPath, type: 'f32', copied: false };
  if (type === 'f16' && tensors.every((tensor) => tensor.type === 'f32' || tensor.type === 'f16')) {
    return { path: modelPath, type, copied: false };
  }
  const { mtimeMs } = await stat(modelPath);
  const identity = createHash('sha256').update(`${modelPath}\n${gguf.byteLength}\n${mtimeMs}\n${gguf.headerSha256}`);
  const name = `${basename(modelPath, '.gguf')}-${identity.digest('hex').slice(0, 16)}.${type}.gguf`;
  const path = join(directory, name);
  await mkdir(directory, { recursive: true }).catch((error: unknown) => {
    throw writeFailed(path, error);
  });
  await withFileLock(`${path}.lock`, options, async () => {
    if (await exists(path)) return;
    options.onEvent?.({ type: 'progress', phase: `${type} weights`, done: 0, total: 1, unit: 'copies' });
    await quantizeModel(modelPath, path, type);
    options.onEvent?.({ type: 'progress', phase: `${type} weights`, done: 1, total: 1, unit: 'copies' });
  });
  return { path, type, copied: true };
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
