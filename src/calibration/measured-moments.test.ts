import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { ErrorCode } from '../base/errors.ts';
import { isKvtcError } from '../base/errors.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { ModelIdentity, StreamTransform } from '../profile/profile.ts';
import type { TensorShape } from '../profile/safetensors.ts';
import { headerPrefix } from '../profile/safetensors.ts';
import type { CalibrateOptions } from './calibrate.ts';
import { calibrateDocuments } from './calibrate.ts';
import type { DocumentRows } from './collect.ts';
import { splitDocuments, unseenDocuments } from './held-out.ts';
import { readMeasuredMoments } from './measured-moments.ts';
import type { TokenDocument } from './sample.ts';
import { hashTokens } from './sample.ts';

const backend = openGgmlBackend({ threads: 1 });
const folder = await mkdtemp(join(tmpdir(), 'kvtc-measured-'));
after(async () => {
  backend.close();
  await rm(folder, { recursive: true });
});

const SINKS = 4;
const TOKENS = 260;
const WIDTH = 64;
const model: ModelIdentity = {
  architecture: 'llama',
  name: 'made up',
  geometry: { layers: 4, kvHeads: 2, keyHeadDim: 8, valueHeadDim: 8 },
  rope: {
    pairing: 'interleaved',
    dims: 8,
    frequencyBase: 10_000,
    frequencyScale: 1,
    extFactor: 0,
    attnFactor: 1,
    betaFast: 32,
    betaSlow: 1,
    originalContext: 4096,
    frequencyFactors: null,
  },
  fingerprint: 'ab'.repeat(32),
};

const documents: readonly TokenDocument[] = Array.from({ length: 8 }, (_, d) => {
  const random = seededRandom(d + 1);
  const tokens = Int32Array.from({ length: TOKENS }, () => random.below(5000));
  return { group: 'test', source: `document ${d}`, tokens, sha256: hashTokens(tokens) };
});

/** Rows that depend on the document alone: a few strong directions, offsets, and noise. */
function rowsOf({ tokens }: TokenDocument): DocumentRows {
  const mix = seededRandom(99);
  const directions = Float64Array.from({ length: WIDTH * WIDTH }, () => mix.normal());
  const random = seededRandom(tokens[0] ?? 0);
  const rowCount = tokens.length - SINKS;
  const stream = (offset: number): Float32Array => {
    const rows = new Float32Array(rowCount * WIDTH);
    for (let r = 0; r < rowCount; r++) {
      const hidden = Float64Array.from({ length: WIDTH }, (_, i) => random.normal() * 2 ** (-i / 6));
      for (let i = 0; i < WIDTH; i++) {
        let sum = offset * i;
        for (let j = 0; j < WIDTH; j++) sum += directions[((i * WIDTH + j) * 7) % directions.length]! * hidden[j]!;
        rows[r * WIDTH + i] = sum;
      }
    }
    return rows;
  };
  return { rowCount, key: stream(0.3), value: stream(-0.1) };
}

interface FileChange {
  readonly metadata?: Readonly<Record<string, string>>;
  readonly tensors?: Readonly<Record<string, Float32Array | Float64Array>>;
  readonly without?: string;
}

/** The file that kvtc_collect would write for these documents. */
async function writeMoments(path: string, fitting: readonly TokenDocument[], change: FileChange = {}): Promise<void> {
  const found: Record<string, Float32Array | Float64Array | Int32Array> = {
    documents: Int32Array.from(fitting.flatMap(({ tokens }) => [...tokens])),
  };
  for (const stream of STREAMS) {
    const parts = fitting.map((document) => rowsOf(document)[stream]);
    const first = parts[0] as Float32Array;
    const shift = new Float32Array(WIDTH);
    for (const [at, value] of first.entries()) shift[at % WIDTH]! += value / (first.length / WIDTH);
    const rows = parts.reduce((sum, part) => sum + part.length / WIDTH, 0);
    const mean = new Float64Array(WIDTH);
    const second = new Float64Array((WIDTH * (WIDTH + 1)) / 2);
    for (const part of parts) {
      for (let r = 0; r < part.length; r += WIDTH) {
        for (let i = 0, at = 0; i < WIDTH; i++) {
          const y = part[r + i]! - shift[i]!;
          mean[i]! += y / rows;
          for (let j = 0; j <= i; j++, at++) second[at]! += (y * (part[r + j]! - shift[j]!)) / rows;
        }
      }
    }
    Object.assign(found, { [`${stream}.shift`]: shift, [`${stream}.mean`]: mean, [`${stream}.second`]: second });
  }
  Object.assign(found, change.tensors);
  if (change.without !== undefined) delete found[change.without];
  const tensors = Object.entries(found)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, values]): TensorShape & { name: string; values: typeof values } => ({
      name,
      type: values instanceof Int32Array ? 'I32' : values instanceof Float32Array ? 'F32' : 'F64',
      shape: name === 'documents' ? [fitting.length, TOKENS] : [values.length],
      values,
    }));
  const { geometry, ...facts } = { ...model, rope: undefined };
  const metadata = {
    format: 'kvtc-moments',
    version: '1',
    producer: 'kvtc_collect test',
    model: JSON.stringify({ ...facts, ...geometry, keyPairing: 'interleaved', fileBytes: 1 }),
    settings: JSON.stringify({ sinks: SINKS, rows: fitting.length * (TOKENS - SINKS) }),
    ...change.metadata,
  };
  const parts = tensors.map(({ values }) => new Uint8Array(values.buffer));
  await writeFile(path, Buffer.concat([headerPrefix(metadata, tensors), ...parts]));
}

function setting(output: string, change: Partial<CalibrateOptions>): CalibrateOptions {
  return {
    model,
    documents,
    rows: (document) => Promise.resolve(rowsOf(document)),
    backend,
    output: join(folder, output),
    producer: 'test',
    rank: 48,
    ratios: [2, 4],
    ...change,
  };
}

async function matrixOf({ synthesis }: StreamTransform): Promise<Float32Array> {
  const values = new Float32Array(synthesis.rows * synthesis.columns);
  await synthesis.read(0, synthesis.rows, values);
  return values;
}

const { fitting, heldOut } = splitDocuments(documents);
const path = join(folder, 'moments');
await writeMoments(path, fitting);

for (const codec of ['kvtc-paper', 'wtc'] as const) {
  test(`a ${codec} profile from a moments file is that of the rows themselves`, async () => {
    await calibrateDocuments(setting(`${codec} rows`, { codec }));
    const moments = await readMeasuredMoments(path, model);
    const ran: string[] = [];
    const measured = setting(`${codec} measured`, {
      codec,
      moments,
      documents: [...heldOut, ...fitting],
      rows: (document) => {
        ran.push(document.source);
        return Promise.resolve(rowsOf(document));
      },
    });
    const result = await calibrateDocuments(measured);
    assert.deepEqual(
      ran,
      heldOut.map(({ source }) => source),
      'only documents that are not in the moments are run',
    );
    assert.equal(result.rows, fitting.length * (TOKENS - SINKS));
    const [expected, got] = [
      await openProfile(join(folder, `${codec} rows`)),
      await openProfile(join(folder, `${codec} measured`)),
    ];
    try {
      assert.deepEqual(got.rank, expected.rank);
      for (const stream of STREAMS) {
        const [a, b] = [expected.stream(stream), got.stream(stream)];
        for (let i = 0; i < WIDTH; i++) assert.ok(Math.abs(a.mean[i]! - b.mean[i]!) < 1e-4);
        const [left, right] = [await matrixOf(a), await matrixOf(b)];
        for (let k = 0; k < got.rank[stream]; k++) {
          // Products of collected rows are rounded to 8 bit, which the smallest variances show.
          const room = 0.02 * b.variances[k]! + 1e-4 * b.variances[0]!;
          assert.ok(Math.abs(a.variances[k]! - b.variances[k]!) < room, `${stream} variance ${k}`);
        }
        for (let k = 0; k < 4; k++) {
          let product = 0;
          for (let i = k * WIDTH; i < (k + 1) * WIDTH; i++) product += left[i]! * right[i]!;
          assert.ok(Math.abs(product) > 0.99, `${stream} component ${k} is the same direction: ${product}`);
        }
      }
      const hashes = got.provenance.documents.map(({ sha256 }) => sha256);
      assert.deepEqual(new Set(hashes), new Set(documents.map(({ sha256 }) => sha256)));
      if (got.codec === 'wtc' && expected.codec === 'wtc') {
        const ratios = (profile: typeof got): number[] => profile.steps.map(({ ratio }) => ratio);
        assert.ok(Math.abs((ratios(got)[0] ?? 0) / (ratios(expected)[0] ?? 1) - 1) < 0.02);
      }
    } finally {
      await Promise.all([expected.close(), got.close()]);
    }
  });
}

const rejects = (work: Promise<unknown>, code: ErrorCode): Promise<void> =>
  assert.rejects(work, (error) => isKvtcError(error, code), `expected ${code}`);

test('damaged and foreign moments are refused', async () => {
  const bad = join(folder, 'bad');
  const good = await readFile(path);
  for (const length of [4, 200, good.length - 8]) {
    await writeFile(bad, good.subarray(0, length));
    await rejects(readMeasuredMoments(bad, model), 'KVTC_MOMENTS_MALFORMED');
  }
  const second = (fill: number): Float64Array => new Float64Array((WIDTH * (WIDTH + 1)) / 2).fill(fill);
  const streams = (tensors: NonNullable<FileChange['tensors']>): FileChange => ({ tensors });
  for (const change of [
    { metadata: { format: 'kvtc-sensitivity' } },
    { metadata: { version: '2' } },
    { metadata: { settings: '{"sinks":4,"rows":77}' } },
    { metadata: { settings: '{"sinks":4}' } },
    { without: 'documents' },
    { without: 'value.shift' },
    streams({ 'key.second': second(-1) }),
    streams({ 'key.second': second(NaN) }),
    streams({ 'value.mean': new Float64Array(WIDTH).fill(Infinity) }),
    streams({ 'value.mean': new Float64Array(WIDTH + 1) }),
    streams({ 'value.mean': new Float32Array(WIDTH) }),
  ]) {
    await writeMoments(bad, fitting.slice(0, 2), change);
    await rejects(readMeasuredMoments(bad, model), 'KVTC_MOMENTS_MALFORMED');
  }
  await rejects(readMeasuredMoments(join(folder, 'absent'), model), 'KVTC_FILE_NOT_FOUND');
  const other: Partial<ModelIdentity>[] = [
    { fingerprint: 'cd'.repeat(32) },
    { geometry: { ...model.geometry, layers: 3 } },
    { rope: { ...model.rope, pairing: 'half-split' } },
  ];
  for (const change of other) {
    await rejects(readMeasuredMoments(path, { ...model, ...change }), 'KVTC_MODEL_MISMATCH');
  }
});

test('moments take no parts, no other sinks and no texts that are all in them', async () => {
  const moments = await readMeasuredMoments(path, model);
  const calibrate = (change: Partial<CalibrateOptions>): Promise<unknown> =>
    calibrateDocuments(setting('refused', { moments, ...change }));
  await rejects(calibrate({ part: { index: 0, count: 2 } }), 'KVTC_OPTION_INVALID');
  await rejects(calibrate({ parts: ['somewhere'] }), 'KVTC_OPTION_INVALID');
  await rejects(calibrate({ sinks: 0 }), 'KVTC_MOMENTS_MISMATCH');
  await rejects(calibrate({ documents: fitting }), 'KVTC_CALIBRATION_TEXT_SHORT');
});

test('a document that repeats more than a few runs of a seen one is not held out, wherever it is cut', () => {
  const [seen, other] = documents as [TokenDocument, TokenDocument];
  const cut = (first: number, count: number): TokenDocument => {
    const tokens = new Int32Array(TOKENS);
    tokens.set(other.tokens);
    tokens.set(seen.tokens.subarray(first, first + count), 11);
    return { ...other, source: `${count} from ${first}`, tokens, sha256: hashTokens(tokens) };
  };
  const kept = unseenDocuments([cut(0, 40), cut(17, 200), cut(5, 120), other], [seen]);
  assert.deepEqual(
    kept.map(({ source }) => source),
    ['40 from 0', other.source],
  );
});
