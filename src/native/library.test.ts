import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { ENGINE_RELEASES, checkEngineRelease, enginePackage, libraryFile, loadNativeLibraries } from './library.ts';

const stating = (release: unknown): string => JSON.stringify({ buildOptions: { llamaCpp: { release } } });

test('loads the libraries once and knows their release', () => {
  const first = loadNativeLibraries();
  assert.ok(ENGINE_RELEASES.includes(first.release));
  assert.equal(loadNativeLibraries(), first);
  const version: string = first.llama.func('const char *llama_version()')();
  assert.equal(`v${version.replace(/-dev$/, '')}`, first.release);
});

test('refuses releases it was not checked with', () => {
  for (const metadata of [stating('v0.3.9'), stating(5), stating(undefined), '{}', 'not JSON', 'null']) {
    assert.throws(
      () => checkEngineRelease(metadata),
      (error) => isKvtcError(error, 'KVTC_ENGINE_VERSION'),
    );
  }
  assert.equal(checkEngineRelease(stating('v0.5.0')), 'v0.5.0');
});

test('names the package of each platform and refuses the others', () => {
  assert.equal(enginePackage('darwin', 'arm64'), '@node-llama-cpp/mac-arm64-metal');
  assert.throws(
    () => enginePackage('linux', 's390x'),
    (error) => isKvtcError(error, 'KVTC_ENGINE_MISSING'),
  );
});

test('finds the libraries by the names of each platform', () => {
  const mac = ['libggml-base.dylib', 'libggml-metal.so', 'libggml.metal.v0.4.0.dylib', 'libllama-common.dylib'];
  assert.equal(libraryFile(mac, 'ggml-base'), 'libggml-base.dylib');
  assert.equal(libraryFile(mac, 'ggml'), 'libggml.metal.v0.4.0.dylib');
  assert.equal(libraryFile(mac, 'llama'), undefined);
  assert.equal(libraryFile(['ggml-cpu-haswell.dll', 'ggml.v0.4.0.dll'], 'ggml'), 'ggml.v0.4.0.dll');
  assert.equal(libraryFile(['libllama-common.so', 'libllama.v0.5.0.so'], 'llama'), 'libllama.v0.5.0.so');
  assert.equal(libraryFile(['libllama.so'], 'llama'), 'libllama.so');
});
