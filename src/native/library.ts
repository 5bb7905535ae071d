// Finds the engine's npm platform package, checks its release and loads its shared libraries, once per process.
// Does not know which functions the rooms call on them.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';
import { KvtcError } from '../base/errors.ts';
import { captureLog } from './log.ts';

export interface NativeLibraries {
  readonly ggmlBase: LibraryHandle;
  readonly ggml: LibraryHandle;
  readonly llama: LibraryHandle;
  /** Folder of the libraries. */
  readonly directory: string;
  /** llama.cpp release as the package states it, such as `v0.4.0`. */
  readonly release: string;
}

/**
 * Releases whose struct layouts, function signatures and state format this build was checked against. Others are
 * refused: a parameter struct that has moved corrupts memory without a sign.
 */
export const ENGINE_RELEASES: readonly string[] = ['v0.4.0', 'v0.5.0'];

const PACKAGES: Readonly<Record<string, string>> = {
  'linux-x64': 'linux-x64',
  'darwin-arm64': 'mac-arm64-metal',
  'darwin-x64': 'mac-x64',
  'win32-x64': 'win-x64',
};

let loaded: NativeLibraries | undefined;

/**
 * Loads the libraries on first use and lets ggml pick the compute libraries for this CPU.
 * Throws KVTC_ENGINE_MISSING when the platform package is absent or incomplete, KVTC_ENGINE_VERSION when it holds a
 * release that was not checked.
 */
export function loadNativeLibraries(): NativeLibraries {
  loaded ??= load(enginePackage());
  return loaded;
}

/** Name of the npm package with the libraries for this machine, or KVTC_ENGINE_MISSING where there is none. */
export function enginePackage(platform: string = process.platform, arch: string = process.arch): string {
  const name = PACKAGES[`${platform}-${arch}`];
  if (name !== undefined) return `@node-llama-cpp/${name}`;
  throw new KvtcError(
    'KVTC_ENGINE_MISSING',
    `there is no engine package for ${platform} on ${arch}; packages exist for ${Object.keys(PACKAGES).join(', ')}`,
    { platform, arch },
  );
}

/** Reads the release from the text of a package's build metadata. Throws KVTC_ENGINE_VERSION for any not checked. */
export function checkEngineRelease(metadata: string): string {
  let release: unknown;
  try {
    const parsed = JSON.parse(metadata) as { buildOptions?: { llamaCpp?: { release?: unknown } } } | null;
    release = parsed?.buildOptions?.llamaCpp?.release;
  } catch {
    // Unreadable metadata is an unknown release.
  }
  if (typeof release === 'string' && ENGINE_RELEASES.includes(release)) return release;
  throw new KvtcError(
    'KVTC_ENGINE_VERSION',
    `the engine's package holds llama.cpp ${String(release)}; this build was checked with ` +
      `${ENGINE_RELEASES.join(' and ')}. Install the pinned version of the package`,
    { got: String(release), expected: ENGINE_RELEASES.join(', ') },
  );
}

function load(packageName: string): NativeLibraries {
  const directory = libraryFolder(packageName);
  const release = checkEngineRelease(readFileSync(join(directory, '_nlcBuildMetadata.json'), 'utf8'));
  const files = readdirSync(directory);
  const open = (name: string): LibraryHandle => {
    const file = libraryFile(files, name);
    if (file === undefined) throw missing(packageName, `no ${name} library in ${directory}`);
    try {
      return koffi.load(join(directory, file));
    } catch (cause) {
      throw missing(packageName, `${file} cannot be loaded`, cause);
    }
  };
  const ggmlBase = open('ggml-base');
  const ggml = open('ggml');
  const llama = open('llama');
  captureLog(llama);
  ggml.func('void ggml_backend_load_all_from_path(const char *folder)')(directory);
  return Object.freeze({ ggmlBase, ggml, llama, directory, release });
}

/** File of a library in a package: `libllama.so`, `libllama.metal.v0.4.0.dylib` and `llama.v0.4.0.dll` are all `llama`. */
export function libraryFile(files: readonly string[], name: string): string | undefined {
  const pattern = new RegExp(`^(lib)?${name}(\\.[a-z]+)?(\\.v[\\d.]+)?\\.(so|dylib|dll)$`);
  return files.find((file) => pattern.test(file));
}

function libraryFolder(packageName: string): string {
  let entry: string;
  try {
    entry = fileURLToPath(import.meta.resolve(packageName));
  } catch (cause) {
    throw missing(packageName, 'the package is not installed', cause);
  }
  const folder = join(dirname(entry), '../bins', packageName.slice(packageName.indexOf('/') + 1));
  if (!existsSync(join(folder, '_nlcBuildMetadata.json'))) throw missing(packageName, 'the package holds no libraries');
  return folder;
}

function missing(packageName: string, what: string, cause?: unknown): KvtcError {
  return new KvtcError(
    'KVTC_ENGINE_MISSING',
    `the engine cannot be used: ${what}. Run "npm install ${packageName}" beside kvtc, without --omit=optional`,
    { packageName },
    { cause },
  );
}
