import assert from 'node:assert/strict';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import type { ErrorCode } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { loadMoments, saveMoments } from './moments-file.ts';
import {
  accumulateMoments,
  covarianceMatrix,
  createMoments,
  fitMomentsFrame,
  meanOf,
  mergeMoments,
  variancesOf,
} from './moments.ts';
import type { Moments, MomentsFrame } from './moments.ts';

const backend = openGgmlBackend();
const folder = await mkdtemp(join(tmpdir(), 'kvtc-moments-'));
after(async () => {
  backend.close();
  await rm(folder, { recursive: true });
});

const width = 70;
/** Correlated rows with offsets and spreads over three decades. */
function makeRows(rowCount: number, seed: number): Float32Array {
  const random = seededRandom(seed);
  const rows = new Float32Array(rowCount * width);
  for (let r = 0; r < rowCount; r++) {
    const common = random.normal();
    for (let c = 0; c < width; c++) rows[r * width + c] = 10 ** (((c % 7) - 3) / 2) * (random.normal() + common + c);
  }
  return rows;
}
const segments = [1500, 64, 1, 1024, 700].map((rowCount, i) => ({ rowCount, rows: makeRows(rowCount, i + 1) }));
const frame: MomentsFrame = fitMomentsFrame(segments[0]!.rows, 1500, width, 'a model, keys');

async function sum(order: readonly number[]): Promise<Moments> {
  const moments = createMoments(frame);
  for (const i of order) await accumulateMoments(moments, segments[i]!.rows, segments[i]!.rowCount, { backend });
  return moments;
}

async function covarianceOf(moments: Moments): Promise<Float32Array> {
  const out = new Float32Array(width * width);
  const source = covarianceMatrix(moments);
  // In uneven blocks, because a reader may take any.
  for (let start = 0; start < width; start += 19) {
    const end = Math.min(width, start + 19);
    await source.read(start, end, out.subarray(start * width, end * width));
  }
  return out;
}

test('mean and covariance are those of the rows', async () => {
  for (const [precision, tolerance] of [
    ['f32', 1e-5],
    ['q8_0', 2e-3],
  ] as const) {
    const moments = createMoments(frame);
    for (const { rows, rowCount } of segments) await accumulateMoments(moments, rows, rowCount, { backend, precision });
    const all = segments.flatMap(({ rows }) => [...rows]);
    const n = all.length / width;
    assert.equal(moments.rows, n);
    const mean = Float64Array.from({ length: width }, (_, c) => {
      let total = 0;
      for (let r = 0; r < n; r++) total += all[r * width + c]!;
      return total / n;
    });
    const found = await covarianceOf(moments);
    const variance = (c: number): number => {
      let total = 0;
      for (let r = 0; r < n; r++) total += (all[r * width + c]! - mean[c]!) ** 2;
      return total / n;
    };
    const spread = Float64Array.from({ length: width }, (_, c) => Math.sqrt(variance(c)));
    const means = meanOf(moments);
    const variances = variancesOf(moments);
    for (let i = 0; i < width; i++) {
      assert.ok(Math.abs(means[i]! - mean[i]!) < 1e-5 * (spread[i]! + Math.abs(mean[i]!)), `mean ${i}`);
      assert.ok(
        Math.abs(variances[i]! / spread[i]! ** 2 - 1) < 1e-5,
        `variance ${i} is exact in every precision: ${variances[i]! / spread[i]! ** 2 - 1}`,
      );
      for (let j = 0; j < width; j++) {
        let expected = 0;
        for (let r = 0; r < n; r++) expected += (all[r * width + i]! - mean[i]!) * (all[r * width + j]! - mean[j]!);
        expected /= n;
        const error = Math.abs(found[i * width + j]! - expected) / (spread[i]! * spread[j]!);
        assert.ok(error < tolerance, `${precision} covariance ${i}, ${j} is off by ${error}`);
      }
    }
  }
});

test('partial runs merged in any order, through files, give one run bit for bit', async () => {
  const whole = await sum([0, 1, 2, 3, 4]);
  assert.deepEqual(await sum([4, 2, 0, 1, 3]), whole);
  await saveMoments(join(folder, 'a'), await sum([3, 1]));
  await saveMoments(join(folder, 'b'), await sum([0, 4, 2]));
  const b = await loadMoments(join(folder, 'b'), frame.key);
  mergeMoments(b, await loadMoments(join(folder, 'a'), frame.key));
  assert.deepEqual(b, whole);
  await saveMoments(join(folder, 'merged'), b);
  await saveMoments(join(folder, 'whole'), whole);
  assert.deepEqual(await readFile(join(folder, 'merged')), await readFile(join(folder, 'whole')));
});

test('the number of threads does not change a bit', async () => {
  const single = openGgmlBackend({ threads: 1 });
  const moments = createMoments(frame);
  await accumulateMoments(moments, segments[0]!.rows, 1500, { backend: single });
  single.close();
  assert.deepEqual(moments, await sum([0]));
});

async function rejects(work: Promise<unknown>, code: ErrorCode): Promise<void> {
  await assert.rejects(work, (error) => isKvtcError(error, code), `expected ${code}`);
}

test('a file cut anywhere, lengthened or changed in any byte is refused', async () => {
  const path = join(folder, 'good');
  await saveMoments(path, await sum([1]));
  const good = await readFile(path);
  const bad = join(folder, 'bad');
  for (const length of [0, 7, 15, 16, 40, 100, good.length >> 1, good.length - 1]) {
    await writeFile(bad, good.subarray(0, length));
    await rejects(loadMoments(bad), 'KVTC_MOMENTS_MALFORMED');
  }
  await writeFile(bad, Buffer.concat([good, Buffer.alloc(1)]));
  await rejects(loadMoments(bad), 'KVTC_MOMENTS_MALFORMED');
  const random = seededRandom(11);
  for (let trial = 0; trial < 200; trial++) {
    const changed = Buffer.from(good);
    changed[trial < 80 ? trial : random.below(good.length)]! ^= 1 << random.below(8);
    await writeFile(bad, changed);
    await rejects(loadMoments(bad), 'KVTC_MOMENTS_MALFORMED');
  }
  await rejects(loadMoments(join(folder, 'absent')), 'KVTC_FILE_NOT_FOUND');
  await rejects(loadMoments(path, 'another key'), 'KVTC_MOMENTS_MISMATCH');
});

test('a failed write leaves the old file and nothing beside it', async () => {
  const path = join(folder, 'no-such-folder', 'moments');
  await rejects(saveMoments(path, await sum([2])), 'KVTC_WRITE_FAILED');
  assert.ok(!(await readdir(folder)).some((name) => name.includes('.part')));
});

test('moments of different frames are not added', async () => {
  const moments = await sum([1]);
  const other = fitMomentsFrame(segments[3]!.rows, 1024, width, frame.key);
  assert.throws(
    () => mergeMoments(moments, createMoments(other)),
    (error) => isKvtcError(error, 'KVTC_MOMENTS_MISMATCH'),
  );
  assert.throws(
    () => mergeMoments(moments, createMoments({ ...frame, key: 'b' })),
    (error) => isKvtcError(error, 'KVTC_MOMENTS_MISMATCH'),
  );
});

test('NaN and Inf are refused, in the frame and in a segment', async () => {
  for (const value of [NaN, Infinity, -Infinity]) {
    const rows = segments[1]!.rows.slice();
    rows[33 * width + 5] = value;
    await rejects(accumulateMoments(createMoments(frame), rows, 64, { backend }), 'KVTC_ROWS_NOT_FINITE');
    assert.throws(
      () => fitMomentsFrame(rows, 64, width, ''),
      (error) => isKvtcError(error, 'KVTC_ROWS_NOT_FINITE'),
    );
  }
});

test('features that rest in the frame and move later keep their variance', async () => {
  const rows = makeRows(300, 5);
  for (let r = 0; r < 300; r++) rows[r * width + 3] = 7;
  const moments = createMoments(fitMomentsFrame(rows, 300, width, ''));
  await accumulateMoments(moments, rows, 300, { backend });
  assert.equal(variancesOf(moments)[3], 0);
  assert.equal(meanOf(moments)[3], 7);
  for (let r = 0; r < 300; r++) rows[r * width + 3] = 7 + (r % 2);
  await accumulateMoments(moments, rows, 300, { backend });
  assert.ok(Math.abs(variancesOf(moments)[3]! - 3 / 16) < 1e-4);
});

test('sums that would outgrow 53 bits are refused', async () => {
  const rows = new Float32Array(4 * width);
  for (let i = 0; i < rows.length; i++) rows[i] = (i % 3) * 1e-9;
  const moments = createMoments(fitMomentsFrame(rows, 4, width, ''));
  await rejects(accumulateMoments(moments, rows.fill(1e6), 4, { backend }), 'KVTC_MOMENTS_OVERFLOW');
});

test('an abort stops between chunks', async () => {
  const options = { backend, signal: AbortSignal.abort() };
  await rejects(accumulateMoments(createMoments(frame), segments[0]!.rows, 1500, options), 'KVTC_ABORTED');
});
