import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { ENGINE_RELEASES, checkEngineRelease, enginePackage, loadNativeLibraries } from './library.ts';

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
