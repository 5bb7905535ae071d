// Writes the golden chunks and files of the codec wtc (test/golden/wtc): a table family with chunks coded by it; a profile
// with containers. Run it only when one is added: what is there must keep decoding to the same numbers
// (docs/format/wtc-codec.md), and no file in the manifest may change.

import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { laplaceRows, testTables } from '../src/codec/wtc/fixture.test-data.ts';
import { packFamily } from '../src/codec/wtc/family.ts';
import { createWtcPlan } from '../src/codec/wtc/plan.ts';
import { decodeWtcChunk, encodeWtcChunk } from '../src/codec/wtc/wtc-codec.ts';
import { openContainer } from '../src/container/reader.ts';
import { contentHashes } from '../test/content-hashes.ts';
import type { TinyWtcOptions } from '../test/tiny-wtc.ts';
import { writeTinyWtc } from '../test/tiny-wtc.ts';
import { openProfile } from '../src/profile/open-profile.ts';

const folder = join(import.meta.dirname, '..', 'test', 'golden', 'wtc');
const RANK = 96;
const tables = testTables(RANK);

const CASES = [
  { name: 'one token', tokens: 1, stepIndex: 0, cut: -5, outlier: 0, tokenClass: () => 0 },
  {
    name: 'coarse, token classes of all kinds',
    tokens: 37,
    stepIndex: 100,
    cut: -5,
    outlier: 0,
    tokenClass: (t: number) => ((t * 7) % 16) - 8,
  },
  {
    name: 'one lane per 16 tokens, uneven',
    tokens: 50,
    stepIndex: -77,
    cut: -8,
    outlier: 0,
    tokenClass: (t: number) => -(t % 2),
  },
  { name: 'fine: raw bits', tokens: 3, stepIndex: -2300, cut: -10, outlier: 0, tokenClass: (t: number) => t - 1 },
  { name: 'outliers: escapes of every length', tokens: 20, stepIndex: 0, cut: -5, outlier: 30, tokenClass: () => 1 },
  { name: 'nothing above the cut', tokens: 5, stepIndex: 5000, cut: 0, outlier: 0, tokenClass: () => 3 },
];

const cases = CASES.map(({ name, tokens, stepIndex, cut, outlier, tokenClass }, index) => {
  const parameters = { stepIndex, rank: RANK, cut };
  const plan = createWtcPlan(parameters, tables);
  const coefficients = laplaceRows(tokens, RANK, 100 + index);
  // One component a token, each further out than the last, up to beyond what an escape can hold.
  for (let t = 0; t < tokens && outlier > 0; t++)
    coefficients[t * RANK + ((t * 13) % RANK)] = (t % 2 ? -1 : 1) * outlier * 1.8 ** t;
  const classes = Int8Array.from({ length: tokens }, (_, t) => tokenClass(t));
  const chunk = encodeWtcChunk(coefficients, tokens, classes, plan);
  const out = new Float32Array(tokens * RANK);
  decodeWtcChunk(chunk, tokens, plan, out);
  return {
    name,
    scales: [...tables.scales],
    parameters,
    tokens,
    tokenClasses: [...classes],
    chunk: Buffer.from(chunk).toString('hex'),
    sha256: createHash('sha256').update(new Uint8Array(out.buffer)).digest('hex'),
  };
});

await mkdir(folder, { recursive: true });
await writeFile(join(folder, 'family.f32'), new Uint8Array(packFamily(tables.family).buffer));
await writeFile(join(folder, 'cases.json'), `${JSON.stringify(cases)}\n`);

const FILES: readonly (readonly [string, TinyWtcOptions, string])[] = [
  [
    'finer-window',
    { ratio: 16, window: 20, windowMode: 'finer', seed: 51 },
    'the default: window coded finer, token steps of their own',
  ],
  [
    'exact-window',
    { ratio: 25, window: 20, windowMode: 'exact', seed: 52 },
    'window kept exact, a ratio between filed steps',
  ],
];

const sha256 = async (path: string): Promise<string> =>
  createHash('sha256')
    .update(await readFile(path))
    .digest('hex');
const profileName = 'tiny.profile.safetensors';
// Synthetic, and older than the metric: it holds its analysis. Containers name it, so it is never written again.
const profile = await openProfile(join(folder, profileName));
if (profile.codec !== 'wtc') throw new Error(`a profile of ${profile.codec}`);
const files: Record<string, unknown> = {};
for (const [name, options, reason] of FILES) {
  const path = join(folder, `${name}.kvtc`);
  await writeTinyWtc(path, profile, options);
  const container = await openContainer(path);
  const content = await contentHashes(container, profile);
  files[`${name}.kvtc`] = { producer: container.header.producer, reason, sha256: await sha256(path), content };
  await container.close();
}
await profile.close();
const filedProfile = { name: profileName, id: profile.id, sha256: await sha256(join(folder, profileName)) };
await writeFile(
  join(folder, 'manifest.json'),
  `${JSON.stringify({ formatVersion: '1.0', profile: filedProfile, files }, null, 2)}\n`,
);
