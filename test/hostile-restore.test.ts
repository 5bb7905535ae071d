// Containers that are sound in themselves but ask the restoring side for what its profile does not have.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ErrorCode } from '../src/base/errors.ts';
import { isKvtcError } from '../src/base/errors.ts';
import { restoreLayers } from '../src/cache/restore.ts';
import { openTransforms } from '../src/cache/transforms.ts';
import { openContainer } from '../src/container/reader.ts';
import type { ContainerHeader } from '../src/container/types.ts';
import { openReferenceBackend } from '../src/linalg/reference.ts';
import { openProfile } from '../src/profile/open-profile.ts';
import { readTiny, tinyBytes } from './tiny-container.ts';
import type { TinyContent } from './tiny-container.ts';

const golden = join(import.meta.dirname, 'golden', 'v1');

const empty = { groups: [], rank: 1 << 20 };
const cases: readonly (readonly [
  string,
  ErrorCode,
  (header: ContainerHeader) => Partial<ContainerHeader>,
  boolean?,
])[] = [
  ['another profile', 'KVTC_PROFILE_MISMATCH', () => ({ profileId: '0'.repeat(64) })],
  ['another model', 'KVTC_MODEL_MISMATCH', ({ model }) => ({ model: { ...model, fingerprint: '0'.repeat(64) } })],
  [
    'a model of the same name and fewer layers',
    'KVTC_MODEL_MISMATCH',
    ({ model }) => ({ model: { ...model, geometry: { ...model.geometry, layers: 1, kvHeads: 4 } } }),
  ],
  ['a codec from the future', 'KVTC_CODEC_UNKNOWN', () => ({ codec: 'kvtc-next' })],
  ['an unknown entropy method', 'KVTC_CODEC_UNKNOWN', () => ({ entropy: 'huffman' })],
  ['parameters of another codec', 'KVTC_CONTAINER_MALFORMED', () => ({ codecParameters: { step: 1 } })],
  [
    'a rank far beyond the basis, in a long chunk of no bytes',
    'KVTC_PROFILE_MISMATCH',
    () => ({
      codecParameters: { keyRatio: 8, valueRatio: 8, key: empty, value: empty },
      tokenCount: 16_384 + 12,
      chunkTokens: 16_384,
      exactRanges: [
        { startToken: 0, endToken: 4 },
        { startToken: 16_388, endToken: 16_396 },
      ],
    }),
    true,
  ],
];

for (const [what, code, change, emptyChunks = false] of cases) {
  test(`refuses to restore ${what}`, async () => {
    const source = await openContainer(join(golden, 'windowed-deflate.kvtc'));
    const profile = await openProfile(join(golden, 'factors.profile.safetensors'));
    const backend = openReferenceBackend();
    const transforms = openTransforms(profile, backend, { precision: 'f32' });
    const original = await readTiny(source);
    const header = { ...original.header, ...change(original.header) };
    let content: TinyContent = { ...original, header };
    if (emptyChunks) {
      const chunk = { startToken: 4, endToken: 16_388, packedBytes: 0, stored: new Uint8Array(0) };
      content = {
        ...content,
        tokens: null,
        positions: Int32Array.from({ length: header.tokenCount }, (_, token) => token),
        chunks: [
          { ...chunk, stream: 'key' },
          { ...chunk, stream: 'value' },
        ],
      };
    }
    const container = await openContainer(await tinyBytes(content));
    const restoring = restoreLayers(container, transforms, { startLayer: 0, endLayer: 2 });
    await assert.rejects(restoring, (error) => isKvtcError(error, code) || assert.fail(String(error)));
    transforms.close();
    backend.close();
    await profile.close();
    await source.close();
  });
}
