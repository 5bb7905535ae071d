import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { ErrorCode } from '../base/errors.ts';
import { isKvtcError } from '../base/errors.ts';
import { readSensitivity, writeSensitivity } from './sensitivity-file.ts';
import type { Sensitivity } from './sensitivity-file.ts';

let directory = '';
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'kvtc-sensitivity-'));
});
after(() => rm(directory, { recursive: true, force: true }));

const geometry = { layers: 2, kvHeads: 1, keyHeadDim: 2, valueHeadDim: 3 };
const example: Sensitivity = {
  method: 'forward',
  producer: 'test',
  model: { architecture: 'llama', name: 'tiny', fingerprint: 'f'.repeat(64), geometry },
  settings: { seed: 3, prefixTokens: 2 },
  metrics: {
    key: { heads: 2, headDim: 2, blocks: Float32Array.of(1, 0.5, 0.5, 2, 3, 0, 0, 4) },
    value: { heads: 2, headDim: 3, blocks: Float32Array.from({ length: 18 }, (_, i) => i % 4) },
  },
  importance: {
    documents: 2,
    documentTokens: 3,
    prefixTokens: 2,
    tokens: Int32Array.of(5, 6, 7, 8, 9, 10),
    key: Float32Array.of(NaN, 1, 2, NaN, 3, 0),
    value: Float32Array.of(NaN, 4, 5, NaN, 6, 7),
  },
};

test('what was written is read back, with and without importances, in the same bytes each time', async () => {
  for (const sensitivity of [example, { ...example, importance: null }]) {
    const path = join(directory, 'round');
    await writeSensitivity(path, sensitivity);
    assert.deepEqual(await readSensitivity(path), sensitivity);
    const bytes = await readFile(path);
    await writeSensitivity(path, sensitivity);
    assert.deepEqual(await readFile(path), bytes);
  }
});

test('damaged files are refused', async () => {
  const path = join(directory, 'good');
  await writeSensitivity(path, example);
  const bytes = await readFile(path);
  const text = bytes.toString('latin1');
  const swapped = (from: string, to: string): Buffer => {
    assert.ok(text.includes(from) && from.length === to.length);
    return Buffer.from(text.replace(from, to), 'latin1');
  };
  const nan = Buffer.from(bytes);
  nan.writeFloatLE(NaN, bytes.length - 4 * 18);
  const negative = Buffer.from(bytes);
  negative.writeFloatLE(-1, bytes.length - 4 * 14);
  const cases: Readonly<Record<string, Buffer>> = {
    truncated: bytes.subarray(0, bytes.length - 1),
    format: swapped('kvtc-sensitivity', 'kvtc-sensitivitx'),
    version: swapped('"version":"1"', '"version":"2"'),
    method: swapped('"method":"forward"', '"method":"fxrward"'),
    shape: swapped('[2,2,2]', '[2,1,4]'),
    layers: swapped('\\"layers\\":2', '\\"layers\\":3'),
    tensor: swapped('"value.metric"', '"value.metrix"'),
    nan,
    negative,
  };
  for (const [name, damaged] of Object.entries(cases)) {
    const bad = join(directory, 'bad');
    await writeFile(bad, damaged);
    await assert.rejects(readSensitivity(bad), refusal('KVTC_SENSITIVITY_MALFORMED'), name);
  }
  await assert.rejects(readSensitivity(join(directory, 'none')), refusal('KVTC_FILE_NOT_FOUND'));
});

test('a file of another model is refused', async () => {
  const path = join(directory, 'model');
  await writeSensitivity(path, example);
  const model = {
    architecture: 'llama',
    name: 'other name',
    geometry,
    rope: {
      pairing: 'interleaved',
      dims: 2,
      frequencyBase: 1e4,
      frequencyScale: 1,
      extFactor: 0,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 0,
      frequencyFactors: null,
    },
    fingerprint: 'f'.repeat(64),
  } as const;
  await readSensitivity(path, model);
  const other = { ...model, geometry: { ...geometry, layers: 3 } };
  await assert.rejects(readSensitivity(path, other), refusal('KVTC_MODEL_MISMATCH'));
  await assert.rejects(readSensitivity(path, { ...model, architecture: 'qwen2' }), refusal('KVTC_MODEL_MISMATCH'));
  const twin = { ...model, fingerprint: '0'.repeat(64) };
  await assert.rejects(readSensitivity(path, twin), refusal('KVTC_MODEL_MISMATCH'));
  await writeSensitivity(path, { ...example, model: { ...example.model, fingerprint: null } });
  await readSensitivity(path, twin);
});

function refusal(code: ErrorCode): (error: unknown) => boolean {
  return (error) => isKvtcError(error, code);
}
