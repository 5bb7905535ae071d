import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { writeTinyModel } from '../../test/tiny-gguf.ts';
import type { ErrorCode } from '../base/errors.ts';
import { isKvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { readSensitivity } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import { measureSensitivity } from './measure.ts';
import { waterLevel } from './noise-probes.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-sensitivity-'));
});
after(() => rm(folder, { recursive: true }));

/** Two groups of letters and blanks: the tiny models know bytes alone. */
function texts(): { name: string; texts: { source: string; text: string }[] }[] {
  const random = seededRandom(3);
  const line = (): string => Array.from({ length: 900 }, () => 'etaoin shrdlu'[random.below(13)]).join('');
  return ['a', 'b'].map((name) => ({
    name,
    texts: Array.from({ length: 3 }, (_, i) => ({ source: `${name}${i}`, text: line() })),
  }));
}

const small = { documents: 2, prefixTokens: 400, threads: 1 };

for (const [kind, probedDocuments] of [
  ['llama', 0],
  ['qwen2', 1],
  ['yarn', 0],
] as const) {
  test(`a ${kind} model is measured with ${probedDocuments} probes to a whole file, the same bytes each time`, async () => {
    const model = join(folder, `${kind}.gguf`);
    await writeTinyModel(model, kind);
    const output = join(folder, `${kind}.safetensors`);
    const phases = new Set<string>();
    const measured = await measureSensitivity({
      model,
      texts: texts(),
      output,
      ...small,
      probedDocuments,
      onEvent: (event) => event.type === 'progress' && phases.add(event.phase),
    });
    assert.deepEqual([...phases], probedDocuments > 0 ? ['attention', 'probes'] : ['attention']);
    const read = await readSensitivity(output);
    assert.deepEqual({ ...read, settings: null }, { ...measured, settings: null });
    for (const stream of STREAMS) {
      const { heads, headDim, blocks } = read.metrics[stream];
      assert.equal(heads, 6);
      factorMetrics(read.metrics[stream]); // all heads positive
      for (let h = 0; h < heads; h++) {
        for (let d = 0; d < headDim; d++) assert.ok(blocks[(h * headDim + d) * headDim + d]! > 0);
      }
      const own = read.importance?.[stream].subarray(0, 400) ?? new Float32Array(0);
      const inside = own.subarray(4, 400 - 128);
      assert.ok(inside.every(Number.isFinite));
      assert.ok(Math.abs(inside.reduce((a, b) => a + b, 0) / inside.length - 1) < 1e-3, 'relative to the mean token');
      assert.ok([...own.subarray(0, 4), ...own.subarray(400 - 128)].every(Number.isNaN));
    }
    const bytes = await readFile(output);
    await measureSensitivity({ model, texts: texts(), output, ...small, probedDocuments });
    assert.deepEqual(await readFile(output), bytes);
  });
}

test('settings and texts that do not do are refused before the engine works', async () => {
  const model = join(folder, 'refused.gguf');
  await writeTinyModel(model, 'llama');
  const call = { model, texts: texts(), output: join(folder, 'none'), ...small };
  const refuses = (change: object, code: ErrorCode): Promise<void> =>
    assert.rejects(measureSensitivity({ ...call, ...change }), (error) => isKvtcError(error, code));
  await refuses({ documents: 0 }, 'KVTC_OPTION_INVALID');
  await refuses({ prefixTokens: 200 }, 'KVTC_OPTION_INVALID');
  await refuses({ probedDocuments: 3 }, 'KVTC_OPTION_INVALID');
  await refuses({ texts: [{ name: 'a', texts: [{ source: 's', text: 'too short' }] }] }, 'KVTC_CALIBRATION_TEXT_SHORT');
  await refuses({ signal: AbortSignal.abort() }, 'KVTC_ABORTED');
  await refuses({ model: join(folder, 'missing.gguf') }, 'KVTC_FILE_NOT_FOUND');
});

test('the water level fills variances from below to the total', () => {
  assert.equal(waterLevel([4, 1, 2], 1.5), 0.5);
  assert.equal(waterLevel([4, 1, 2], 4), 1.5);
  assert.equal(waterLevel([4, 1, 2], 6), 3);
  assert.equal(waterLevel([4, 1, 2], 100), 4);
  assert.equal(waterLevel([0, 0], 1), 0);
});
