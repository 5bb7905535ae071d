// Writes test/hostile: broken .kvtc files, each with the error code it must give. Every case breaks one rule of
// docs/format/container.md or docs/format/paper-codec.md.

import { readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ErrorCode } from '../src/base/errors.ts';
import { chunkCases } from './hostile/chunk-cases.ts';
import { headCases } from './hostile/head-cases.ts';
import { headerCases } from './hostile/header-cases.ts';
import { sectionCases } from './hostile/section-cases.ts';

const folder = join(import.meta.dirname, '..', 'test', 'hostile');
for (const name of await readdir(folder).catch(() => [])) await rm(join(folder, name));
const cases = [...headCases, ...headerCases, ...sectionCases, ...chunkCases];
const manifest: Record<string, ErrorCode> = {};
for (const { name, code, bytes } of cases.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
  if (Object.hasOwn(manifest, `${name}.kvtc`)) throw new Error(`two cases are called ${name}`);
  manifest[`${name}.kvtc`] = code;
  await writeFile(join(folder, `${name}.kvtc`), bytes);
}
await writeFile(join(folder, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
