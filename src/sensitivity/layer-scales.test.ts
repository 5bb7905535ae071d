import assert from 'node:assert/strict';
import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { writeTinyModel } from '../../test/tiny-gguf.ts';
import { isKvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import type { HeadMetrics, Sensitivity } from '../calibration/sensitivity-file.ts';
import { factorMetrics } from '../calibration/weighted-basis.ts';
import type { LlamaModel } from '../engines/llama/session.ts';
import { openModel } from '../engines/llama/session.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { codeHeadRows, fitHeadCoding, stepForBits } from './head-coding.ts';
import { layerScales, measureLayerLosses } from './layer-scales.ts';
import { measureSensitivity } from './measure.ts';
import { weighSensitivity } from './weigh-layers.ts';

const [DIM, TOKENS] = [16, 300] as const;
let folder = '';
let model: LlamaModel;
const backend = openGgmlBackend({ threads: 1 });
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-layers-'));
  const path = join(folder, 'model.gguf');
  await writeTinyModel(path, 'qwen2');
  model = await openModel(path, { threads: 1 });
});
after(async () => {
  model.close();
  backend.close();
  await rm(folder, { recursive: true });
});

/** A metric of one head that is far from even, and rows that are. */
function example(): { rows: Float32Array; metrics: HeadMetrics } {
  const random = seededRandom(4);
  const rows = Float32Array.from({ length: TOKENS * DIM }, () => random.normal() + 2);
  const factor = Float64Array.from({ length: DIM * DIM }, (_, i) => random.normal() / (1 + (i % DIM)));
  const blocks = new Float32Array(DIM * DIM);
  for (let i = 0; i < DIM; i++) {
    for (let j = 0; j < DIM; j++) {
      for (let k = 0; k < DIM; k++) blocks[i * DIM + j]! += factor[i * DIM + k]! * factor[j * DIM + k]!;
    }
  }
  return { rows, metrics: { heads: 1, headDim: DIM, blocks } };
}

test("a head's coding costs what the metric says of its error, over each token's own step", () => {
  const { rows, metrics } = example();
  const { lower, inverse } = factorMetrics(metrics);
  const coding = fitHeadCoding(rows, DIM, lower, inverse);
  assert.ok(coding.variances.every((v, i) => v >= 0 && v <= (coding.variances[i - 1] ?? Infinity)));
  const random = seededRandom(5);
  const steps = Float64Array.from({ length: TOKENS }, () => 0.5 + random.uniform());
  const step = stepForBits([coding], 1);
  const coded = rows.slice();
  const cost = codeHeadRows(coded, coding, step, steps);
  let expected = 0;
  for (let t = 0; t < TOKENS; t++) {
    for (let i = 0; i < DIM; i++) {
      let sum = 0; // (Lᵀ·error)ᵢ
      for (let k = i; k < DIM; k++) sum += lower[k * DIM + i]! * (coded[t * DIM + k]! - rows[t * DIM + k]!);
      expected += (sum / steps[t]!) ** 2 / TOKENS;
    }
  }
  assert.ok(Math.abs(cost / expected - 1) < 1e-4, `${cost}, ${expected}`);
  assert.ok(stepForBits([coding], 2) < step, 'more bits, finer steps');
  const fine = rows.slice();
  assert.ok(codeHeadRows(fine, coding, step / 1000, steps) < cost / 1e4);
  assert.ok(fine.every((value, i) => Math.abs(value - rows[i]!) < 0.1));
});

test('scales are losses over costs of all documents, over the geometric mean of both streams', () => {
  const scales = layerScales([
    { klSums: { key: [1, 2], value: [3, 0] }, costs: { key: [1, 1], value: [1, 1] } },
    { klSums: { key: [3, 6], value: [1, 0] }, costs: { key: [1, 1], value: [3, 1] } },
  ]);
  const mean = (2 * 4 * 1) ** (1 / 3);
  assert.deepEqual(
    [...scales.key, ...scales.value].map((scale) => scale.toFixed(9)),
    [2 / mean, 4 / mean, 1 / mean, 1].map((scale) => scale.toFixed(9)),
    'a layer without loss keeps its metric',
  );
});

test("a layer's losses follow from its own rows, and a metric's unit does not change them", async () => {
  const random = seededRandom(6);
  const tokens = (count: number): Int32Array => Int32Array.from({ length: count }, () => 32 + random.below(90));
  const document = { prefix: tokens(200), continuation: tokens(40) };
  const { layers, kvHeads, valueHeadDim: dim } = model.identity.geometry;
  const even = (unit: number): HeadMetrics => ({
    heads: layers * kvHeads,
    headDim: dim,
    blocks: Float32Array.from({ length: layers * kvHeads * dim * dim }, (_, i) =>
      (i % (dim * dim)) % (dim + 1) === 0 ? unit : 0,
    ),
  });
  const ones = new Float64Array(196).fill(1);
  const measure = async (unit: number) => {
    const done: number[] = [];
    const losses = await measureLayerLosses(
      model,
      document,
      { key: even(unit), value: even(unit) },
      { sinks: 4, tokenSteps: { key: ones, value: ones }, onRun: (runs) => done.push(runs) },
    );
    assert.deepEqual(
      done,
      Array.from({ length: 2 * layers }, (_, i) => i + 1),
    );
    return losses;
  };
  const [one, four] = [await measure(1), await measure(4)];
  for (const stream of STREAMS) {
    for (let layer = 0; layer < layers; layer++) {
      assert.ok(one.klSums[stream][layer]! > 1e-6, 'errors show');
      assert.ok(Math.abs(four.klSums[stream][layer]! / one.klSums[stream][layer]! - 1) < 1e-3);
      assert.ok(Math.abs(four.costs[stream][layer]! / one.costs[stream][layer]! / 4 - 1) < 1e-3);
    }
  }
});

test('layers are weighed by an exact model, and measured losses are kept for the next call', async () => {
  const random = seededRandom(3);
  const texts = [
    {
      name: 'a',
      texts: Array.from({ length: 3 }, (_, i) => ({
        source: `a${i}`,
        text: Array.from({ length: 900 }, () => 'etaoin shrdlu'[random.below(13)]).join(''),
      })),
    },
  ];
  const [output, workDirectory] = [join(folder, 'out'), join(folder, 'work')];
  const call = { model, backend, texts, output, workDirectory, documents: 2, prefixTokens: 400 };
  const plain = await measureSensitivity(call);
  const phases: string[] = [];
  const weighed = await measureSensitivity({
    ...call,
    exactModel: model,
    onEvent: (event) => event.type === 'progress' && phases.push(event.phase),
  });
  assert.ok(phases.includes('layers'));
  const { layers } = model.identity.geometry;
  for (const stream of STREAMS) {
    assert.deepEqual(weighed.importance?.[stream], plain.importance?.[stream]);
    const [a, b] = [plain.metrics[stream].blocks, weighed.metrics[stream].blocks];
    const perLayer = a.length / layers;
    const ratios = Array.from({ length: layers }, (_, l) => b[l * perLayer]! / a[l * perLayer]!);
    for (let i = 0; i < a.length; i++) {
      assert.ok(
        Math.abs(b[i]! - a[i]! * ratios[Math.floor(i / perLayer)]!) <= 1e-4 * Math.abs(b[i]!),
        'one scale a layer',
      );
    }
    assert.ok(new Set(ratios.map((ratio) => ratio.toPrecision(3))).size > 1, 'layers differ');
  }
  const otherPath = join(folder, 'other.gguf');
  await writeTinyModel(otherPath, 'llama');
  const other = await openModel(otherPath, { threads: 1 });
  await assert.rejects(measureSensitivity({ ...call, exactModel: other }), (error) =>
    isKvtcError(error, 'KVTC_MODEL_MISMATCH'),
  );
  other.close();
  const bytes = await readFile(output);
  const kept = (await readdir(workDirectory)).filter((name) => name.startsWith('layers-')).toSorted();
  assert.deepEqual(kept, ['layers-0.json', 'layers-1.json']);
  const times = await Promise.all(kept.map(async (name) => (await stat(join(workDirectory, name))).ino));
  await writeFile(join(workDirectory, 'layers-1.json'), '{"key":');
  await measureSensitivity({ ...call, exactModel: model });
  assert.deepEqual(await readFile(output), bytes);
  const after = await Promise.all(kept.map(async (name) => (await stat(join(workDirectory, name))).ino));
  assert.equal(after[0], times[0], 'measured once');
  assert.notEqual(after[1], times[1], 'damaged work is done anew');
});

test('a sensitivity from elsewhere is weighed on its own documents', async () => {
  const random = seededRandom(8);
  const { layers, kvHeads, valueHeadDim: dim } = model.identity.geometry;
  const blocks = Float32Array.from({ length: layers * kvHeads * dim * dim }, (_, i) =>
    (i % (dim * dim)) % (dim + 1) === 0 ? 1 : 0,
  );
  const metrics = { heads: layers * kvHeads, headDim: dim, blocks };
  const [documents, documentTokens, prefixTokens] = [4, 300, 230];
  const size = documents * documentTokens;
  const scores = (): Float32Array =>
    Float32Array.from({ length: size }, (_, i) =>
      i % documentTokens < 4 || i % documentTokens >= prefixTokens ? NaN : 100 * Math.exp(random.normal()),
    );
  const sensitivity: Sensitivity = {
    method: 'gradient',
    producer: 'test',
    model: model.identity,
    settings: {},
    metrics: { key: metrics, value: metrics },
    importance: {
      tokens: Int32Array.from({ length: size }, () => 32 + random.below(90)),
      documents,
      documentTokens,
      prefixTokens,
      key: scores(),
      value: scores(),
    },
  };
  const options = { exactModel: model, sinks: 4, workDirectory: join(folder, 'elsewhere') };
  const weighed = await weighSensitivity(sensitivity, model, options);
  const scales = STREAMS.flatMap((stream) =>
    Array.from({ length: layers }, (_, l) => weighed.metrics[stream].blocks[l * kvHeads * dim * dim]!),
  );
  assert.ok(Math.abs(scales.reduce((sum, scale) => sum + Math.log(scale), 0)) < 1e-4, 'no unit of their own');
  assert.equal(new Set(scales.map((scale) => scale.toPrecision(3))).size, 2 * layers);
  assert.equal(weighed.importance, sensitivity.importance);
  assert.deepEqual(await weighSensitivity(sensitivity, model, options), weighed, 'from the kept losses');
  const whole = { ...sensitivity, importance: { ...sensitivity.importance!, prefixTokens: documentTokens } };
  await assert.rejects(weighSensitivity(whole, model, options), (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'));
  const none = { ...sensitivity, importance: null };
  await assert.rejects(weighSensitivity(none, model, options), (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'));
});
