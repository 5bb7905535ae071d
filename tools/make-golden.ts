// Writes the golden files of format version 1 (test/golden/v1) and their manifest. Run it only when a file is added:
// files already in the manifest must never change, because old files must always decode.

import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openContainer } from '../src/container/reader.ts';
import { contentHashes } from '../test/content-hashes.ts';
import { writeTinyPaper, writeTinyProfile } from '../test/tiny-paper.ts';
import type { TinyModel, TinyPaperOptions } from '../test/tiny-paper.ts';

const folder = join(import.meta.dirname, '..', 'test', 'golden', 'v1');

const base: TinyPaperOptions = {
  tokenCount: 60,
  sinks: 4,
  window: 8,
  chunkTokens: 16,
  entropy: 'deflate',
  elementTypes: { key: 'f16', value: 'f16' },
  seed: 1,
  firstPosition: 0,
  withTokens: true,
};

const files: readonly (readonly [string, TinyModel, TinyPaperOptions, string])[] = [
  ['windowed-deflate', 'factors', base, 'the common case: sinks, window, f16, DEFLATE'],
  [
    'windowless-zstd',
    'factors',
    { ...base, window: 0, entropy: 'zstd', withTokens: false, firstPosition: 3000, seed: 2 },
    'zstd, no window, token ids unknown',
  ],
  [
    'ranges-stored',
    'yarn',
    {
      ...base,
      entropy: 'none',
      exactRanges: [{ startToken: 20, endToken: 25 }],
      elementTypes: { key: 'f32', value: 'bf16' },
      firstPosition: 700,
      seed: 3,
    },
    'no entropy stage, three exact ranges, f32 and bf16 rows, partial interleaved RoPE with YaRN',
  ],
  [
    'q8-rows',
    'yarn',
    { ...base, elementTypes: { key: 'q8_0', value: 'q8_0' }, seed: 4 },
    'exact rows of block-quantised caches',
  ],
  ['one-token', 'factors', { ...base, tokenCount: 1, seed: 5 }, 'nothing but exact tokens: empty payload and index'],
  [
    'long-chunk',
    'factors',
    { ...base, tokenCount: 2500, sinks: 0, window: 0, chunkTokens: 2500, withTokens: false, seed: 6 },
    'a chunk of more than one 64 KiB block, no exact tokens: empty exact rows',
  ],
];

await mkdir(folder, { recursive: true });
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const profiles: Record<string, unknown> = {};
const manifest: Record<string, unknown> = {};
for (const model of ['factors', 'yarn'] as const) {
  const name = `${model}.profile.safetensors`;
  const profile = await writeTinyProfile(join(folder, name), model);
  profiles[name] = { id: profile.id, sha256: sha256(await readFile(join(folder, name))) };
  for (const [file, fileModel, options, reason] of files) {
    if (fileModel !== model) continue;
    const path = join(folder, `${file}.kvtc`);
    await writeTinyPaper(path, profile, options);
    const container = await openContainer(path);
    manifest[`${file}.kvtc`] = {
      profile: name,
      producer: container.header.producer,
      reason,
      sha256: sha256(await readFile(path)),
      content: await contentHashes(container),
    };
    await container.close();
  }
  await profile.close();
}
await writeFile(
  join(folder, 'manifest.json'),
  `${JSON.stringify({ formatVersion: '1.0', profiles, files: manifest }, null, 2)}\n`,
);
