// Finds and loads the engine's shared libraries from its npm platform package, once per process.
// Does not know which functions the rooms call on them.

import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';
import { KvtcError } from '../base/errors.ts';

export interface NativeLibraries {
  readonly ggmlBase: LibraryHandle;
  readonly ggml: LibraryHandle;
  readonly llama: LibraryHandle;
}

const PACKAGES: Readonly<Record<string, string>> = {
  'linux-x64': 'linux-x64',
  'darwin-arm64': 'mac-arm64-metal',
  'darwin-x64': 'mac-x64',
  'win32-x64': 'win-x64',
};

let loaded: NativeLibraries | undefined;

/** Loads the libraries on first use. Throws KVTC_ENGINE_MISSING when the platform package is not installed. */
export function loadNativeLibraries(): NativeLibraries {
  if (loaded !== undefined) return loaded;
  const folder = libraryFolder();
  const open = (pattern: RegExp): LibraryHandle => {
    const file = readdirSync(folder).find((name) => pattern.test(name));
    if (file === undefined) throw missing(`no file ${pattern.source} in the engine's package`);
    return koffi.load(join(folder, file));
  };
  const ggmlBase = open(/^(lib)?ggml-base\.(so|dylib|dll)$/);
  const ggml = open(/^(lib)?ggml(\.v[\d.]+)?\.(so|dylib|dll)$/);
  const llama = open(/^(lib)?llama(\.v[\d.]+)?\.(so|dylib|dll)$/);
  ggml.func('void ggml_backend_load_all_from_path(const char *folder)')(folder);
  loaded = { ggmlBase, ggml, llama };
  return loaded;
}

function libraryFolder(): string {
  const name = PACKAGES[`${process.platform}-${process.arch}`];
  if (name === undefined) throw missing(`no engine package for ${process.platform} ${process.arch}`);
  try {
    const entry = fileURLToPath(import.meta.resolve(`@node-llama-cpp/${name}`));
    const folder = join(dirname(entry), '../bins', name);
    if (existsSync(folder)) return folder;
  } catch (cause) {
    throw missing(`@node-llama-cpp/${name} is not installed`, cause);
  }
  throw missing(`@node-llama-cpp/${name} holds no libraries`);
}

function missing(message: string, cause?: unknown): KvtcError {
  return new KvtcError('KVTC_ENGINE_MISSING', message, {}, { cause });
}
