// Rows rebuilt by the Python decoder, in double precision with RoPE from the page's formulas, against the product's.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import type { ElementType, StreamKind } from '../src/base/geometry.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { decodeBf16, decodeF16 } from '../src/base/half.ts';
import { restoreLayers } from '../src/cache/restore.ts';
import { openTransforms } from '../src/cache/transforms.ts';
import { openContainer } from '../src/container/reader.ts';
import { openReferenceBackend } from '../src/linalg/reference.ts';
import { openProfile } from '../src/profile/open-profile.ts';

const python = promisify(execFile);
const decoder = join(import.meta.dirname, '..', 'reference', 'decode.py');
const golden = join(import.meta.dirname, 'golden', 'v1');

/** Half a unit in the last place of each element type, relative; plus what an f32 angle chain may drift. */
const ROUNDING: Readonly<Record<'f32' | 'f16' | 'bf16', number>> = { f32: 0, f16: 2 ** -11, bf16: 2 ** -8 };
const DRIFT = 1e-4;

function numbers(rows: Uint8Array, type: ElementType): Float32Array {
  if (type === 'f32') return new Float32Array(rows.slice().buffer);
  const halves = new Uint16Array(rows.slice().buffer);
  const out = new Float32Array(halves.length);
  if (type === 'f16') decodeF16(halves, out);
  else decodeBf16(halves, out);
  return out;
}

async function pythonRows(file: string, profile: string, stream: StreamKind, tokens: string): Promise<Float32Array> {
  const folder = await mkdtemp(join(tmpdir(), 'kvtc-rows-'));
  try {
    const out = join(folder, 'rows');
    await python('python3', [
      decoder,
      'rows',
      file,
      '--profile',
      profile,
      '--stream',
      stream,
      '--tokens',
      tokens,
      '-o',
      out,
    ]);
    return new Float32Array(new Uint8Array(await readFile(out)).buffer);
  } finally {
    await rm(folder, { recursive: true });
  }
}

for (const [file, profileFile] of [
  ['windowed-deflate.kvtc', 'factors.profile.safetensors'],
  ['ranges-stored.kvtc', 'yarn.profile.safetensors'],
] as const) {
  test(`rebuilds the rows of ${file} as the product does`, async () => {
    const path = join(golden, file);
    const profilePath = join(golden, profileFile);
    const profile = await openProfile(profilePath);
    const container = await openContainer(path);
    const backend = openReferenceBackend();
    const transforms = openTransforms(profile, backend, { precision: 'f32' });
    const { layers, kvHeads, keyHeadDim } = profile.model.geometry;
    const { tokenCount, elementTypes } = container.header;
    const restored = await restoreLayers(container, transforms, { startLayer: 0, endLayer: layers });
    const width = kvHeads * keyHeadDim;
    for (const stream of STREAMS) {
      const type = elementTypes[stream];
      assert.ok(type !== 'q8_0');
      const got = numbers(restored[stream], type); // [layers][tokens][width]
      const expected = await pythonRows(path, profilePath, stream, ':'); // [tokens][layers][width]
      assert.equal(expected.length, got.length);
      for (let token = 0; token < tokenCount; token++) {
        for (let at = 0; at < layers * width; at++) {
          const layer = Math.floor(at / width);
          const value = got[(layer * tokenCount + token) * width + (at % width)] as number;
          const reference = expected[token * layers * width + at] as number;
          const allowed = Math.abs(reference) * ROUNDING[type] + DRIFT;
          assert.ok(Math.abs(value - reference) <= allowed, `${stream} token ${token}, ${at}: ${value}, ${reference}`);
        }
      }
      const some = await pythonRows(path, profilePath, stream, '18:27');
      assert.deepEqual(some, expected.subarray(18 * layers * width, 27 * layers * width));
    }
    transforms.close();
    backend.close();
    await container.close();
    await profile.close();
  });
}

test('refuses a profile that the file was not made with', async () => {
  const file = join(golden, 'windowed-deflate.kvtc');
  const rows = pythonRows(file, join(golden, 'yarn.profile.safetensors'), 'key', ':');
  await assert.rejects(rows, (error) => {
    assert.match((error as { stderr: string }).stderr, /^KVTC_PROFILE_MISMATCH/);
    return true;
  });
});
