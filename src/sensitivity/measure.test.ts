import assert from 'node:assert/strict';
import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { TinyKind } from '../../test/tiny-gguf.ts';
import { writeTinyModel } from '../../test/tiny-gguf.ts';
import type { ErrorCode } from '../base/errors.ts';
import { isKvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { readSensitivity } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { measureSensitivity } from './measure.ts';

let folder = '';
const backend = openGgmlBackend({ threads: 1 });
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-sensitivity-'));
});
after(async () => {
  backend.close();
  await rm(folder, { recursive: true });
});

/** Runs with a tiny model of that kind. */
async function withModel<T>(kind: TinyKind, use: (model: LlamaModel) => Promise<T>): Promise<T> {
  const path = join(folder, `${kind}.gguf`);
  await writeTinyModel(path, kind);
  const model = await openModel(path, { threads: 1 });
  try {
    return await use(model);
  } finally {
    model.close();
  }
}

/** Two groups of letters and blanks: the tiny models know bytes alone. */
function texts(): { name: string; texts: { source: string; text: string }[] }[] {
  const random = seededRandom(3);
  const line = (): string => Array.from({ length: 900 }, () => 'etaoin shrdlu'[random.below(13)]).join('');
  return ['a', 'b'].map((name) => ({
    name,
    texts: Array.from({ length: 3 }, (_, i) => ({ source: `${name}${i}`, text: line() })),
  }));
}

const small = { backend, documents: 2, prefixTokens: 400 };

for (const kind of ['llama', 'qwen2', 'yarn'] as const) {
  test(`a ${kind} model is measured to a whole file, the same bytes each time`, () =>
    withModel(kind, async (model) => {
      const output = join(folder, `${kind}.safetensors`);
      const phases = new Set<string>();
      const measured = await measureSensitivity({
        model,
        texts: texts(),
        output,
        ...small,
        onEvent: (event) => event.type === 'progress' && phases.add(event.phase),
      });
      assert.deepEqual([...phases], ['sensitivity']);
      assert.ok(!(await readdir(folder)).includes(`${kind}.safetensors.work`), 'nothing is left behind');
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
        const inside = own.subarray(4);
        assert.ok(inside.every(Number.isFinite));
        assert.ok(Math.abs(inside.reduce((a, b) => a + b, 0) / inside.length - 1) < 1e-3, 'relative to the mean token');
        assert.ok(own.subarray(0, 4).every(Number.isNaN));
      }
      const bytes = await readFile(output);
      await measureSensitivity({ model, texts: texts(), output, ...small });
      assert.deepEqual(await readFile(output), bytes);
    }));
}

test('an interrupted measurement goes on with the document it was at and ends in the same bytes', () =>
  withModel('llama', async (model) => {
    const [whole, output, workDirectory] = ['whole', 'resumed', 'work'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const call = { model, texts: texts(), ...small, documents: 4 };
    await measureSensitivity({ ...call, output: whole });
    const stop = new AbortController();
    const stopped = measureSensitivity({
      ...call,
      output,
      workDirectory,
      signal: stop.signal,
      onEvent: (event) => event.type === 'progress' && event.done === 2 && stop.abort(),
    });
    await assert.rejects(stopped, (error) => isKvtcError(error, 'KVTC_ABORTED'));
    const kept = await readdir(workDirectory);
    assert.deepEqual(kept.toSorted(), ['document-0.safetensors', 'document-1.safetensors']);
    const before = await Promise.all(kept.map((name) => stat(join(workDirectory, name))));
    await measureSensitivity({ ...call, output, workDirectory });
    const after = await Promise.all(kept.map((name) => stat(join(workDirectory, name))));
    assert.deepEqual(
      after.map(({ ino }) => ino),
      before.map(({ ino }) => ino),
      'finished documents are not measured again',
    );
    assert.deepEqual(await readFile(output), await readFile(whole));
    // Work of other settings, and damaged work, is done anew.
    await writeFile(join(workDirectory, 'document-1.safetensors'), 'damaged');
    await measureSensitivity({ ...call, output, workDirectory });
    assert.deepEqual(await readFile(output), await readFile(whole));
    await measureSensitivity({ ...call, output, workDirectory, prefixTokens: 410 });
    const other = await readSensitivity(output);
    assert.equal(other.importance?.documentTokens, 410);
  }));

test('settings and texts that do not do are refused before the engine works', () =>
  withModel('llama', async (model) => {
    const call = { model, texts: texts(), output: join(folder, 'none'), ...small };
    const refuses = (change: object, code: ErrorCode): Promise<void> =>
      assert.rejects(measureSensitivity({ ...call, ...change }), (error) => isKvtcError(error, code));
    await refuses({ documents: 0 }, 'KVTC_OPTION_INVALID');
    await refuses({ prefixTokens: 200 }, 'KVTC_OPTION_INVALID');
    await refuses(
      { texts: [{ name: 'a', texts: [{ source: 's', text: 'too short' }] }] },
      'KVTC_CALIBRATION_TEXT_SHORT',
    );
    await refuses({ signal: AbortSignal.abort() }, 'KVTC_ABORTED');
  }));
