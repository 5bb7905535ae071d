// The library's face for coding caches: a profile made ready once, then any number of compress and restore calls.
// Does not know: models, prompts (sessions are the engine room's).

import { readFile } from 'node:fs/promises';
import { KvtcError } from '../base/errors.ts';
import type { LayerRange } from '../base/geometry.ts';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import type { RunOptions } from '../base/events.ts';
import type { ContainerTarget } from '../container/types.ts';
import { openContainer } from '../container/reader.ts';
import type { Backend } from '../linalg/backend.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import type { Profile } from '../profile/profile.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { CompressOptions, CompressResult } from './compress.ts';
import { compressState } from './compress.ts';
import type { ChosenRatio, RatioChoice } from './measured-ratio.ts';
import { chooseRatio } from './measured-ratio.ts';
import type { LayerRows, RestoreOptions, RestoreResult } from './restore.ts';
import { restoreContainer, restoreLayers } from './restore.ts';
import { openTransforms } from './transforms.ts';

export interface CoderOptions {
  /** Threads of the matrix products; default all cores. */
  readonly threads?: number | undefined;
  /** GGUF of the profile's model: needed where the profile expects part of each token by its id (docs/format/profile.md). */
  readonly model?: string | undefined;
  /** A backend of one's own; stays open when the coder closes. */
  readonly backend?: Backend | undefined;
}

export interface CodedResult extends CompressResult {
  /** What it was coded at, and what that is known to cost; null where keys and values have ratios of their own. */
  readonly chosen: ChosenRatio | null;
}

/** A profile with its bases loaded on first use. One call at a time uses all threads; calls may overlap. Close it. */
export interface Coder {
  readonly profile: Profile;
  /**
   * `state`: bytes or a file of them (blob or `ggsq`); `target`: a path or a ContainerTarget. See compressState and
   * chooseRatio.
   */
  compress(
    state: Uint8Array | string,
    target: string | ContainerTarget,
    options?: CompressOptions & RatioChoice,
  ): Promise<CodedResult>;
  /** `container`: a path or bytes. See restoreContainer. */
  restore(container: string | Uint8Array, options?: RestoreOptions): Promise<RestoreResult>;
  /** Only layers [startLayer, endLayer). See restoreLayers. */
  restoreLayers(container: string | Uint8Array, layers: LayerRange, options?: RunOptions): Promise<LayerRows>;
  close(): Promise<void>;
}

/** Opens a coder on a profile file, or on an opened profile, which then stays open. Throws as openProfile. */
export async function openCoder(profile: string | Profile, options: CoderOptions = {}): Promise<Coder> {
  const opened = typeof profile === 'string' ? await openProfile(profile) : profile;
  const backend = options.backend ?? openGgmlBackend({ threads: options.threads });
  const transforms = openTransforms(opened, backend, { model: options.model });
  const withContainer = async <T>(
    source: string | Uint8Array,
    use: (container: Awaited<ReturnType<typeof openContainer>>) => Promise<T>,
  ): Promise<T> => {
    const container = await openContainer(source);
    try {
      return await use(container);
    } finally {
      await container.close();
    }
  };
  return {
    profile: opened,
    compress: async (state, target, compressOptions = {}) => {
      const chosen = chooseRatio(opened, compressOptions);
      const bytes = typeof state === 'string' ? await readState(state) : state;
      const settled = { ...compressOptions, ratio: chosen?.ratio ?? compressOptions.ratio };
      return { ...(await compressState(bytes, transforms, target, settled)), chosen };
    },
    restore: (source, restoreOptions) =>
      withContainer(source, (container) => restoreContainer(container, transforms, restoreOptions)),
    restoreLayers: (source, layers, runOptions) =>
      withContainer(source, (container) => restoreLayers(container, transforms, layers, runOptions)),
    close: async () => {
      transforms.close();
      if (options.backend === undefined) backend.close();
      if (typeof profile === 'string') await opened.close();
    },
  };
}

export interface CompressCall extends CompressOptions, CoderOptions, RatioChoice {
  readonly profile: string | Profile;
  /** Sequence state: bytes of llama_state_seq_get_data, or a path to such bytes or to a `ggsq` state file. */
  readonly state: Uint8Array | string;
  /** Container to write. */
  readonly output: string | ContainerTarget;
}

/** Compresses one state. For many, open a coder: it keeps the bases loaded. Errors as compressState and openProfile. */
export async function compress(options: CompressCall): Promise<CodedResult> {
  const coder = await openCoder(options.profile, options);
  try {
    return await coder.compress(options.state, options.output, options);
  } finally {
    await coder.close();
  }
}

export interface RestoreCall extends RestoreOptions, CoderOptions {
  readonly profile: string | Profile;
  readonly container: string | Uint8Array;
  /** File to write the state to as well; it appears whole or not at all. */
  readonly output?: string | undefined;
}

/** Restores one container into state bytes. Errors as restoreContainer and openProfile. */
export async function restore(options: RestoreCall): Promise<RestoreResult> {
  const coder = await openCoder(options.profile, options);
  try {
    const result = await coder.restore(options.container, options);
    const { output } = options;
    if (output !== undefined) await replaceFile(output, (file) => writeFully(file, result.state, 0));
    return result;
  } finally {
    await coder.close();
  }
}

async function readState(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read the state file ${path}`, { path }, { cause });
  }
}
