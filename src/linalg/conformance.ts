// The conformance suite of the numeric seam: every backend runs the same cases against the reference, and the reference
// itself against answers known in closed form. Outputs are poisoned first, so that an unwritten value fails.
// Not part of the library; imported by tests alone.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { Random } from '../base/random.ts';
import type { RopeDescription } from '../rope/description.ts';
import type { Backend, MatrixSource, Precision, RowLayout, TransformSpec } from './backend.ts';
import type { Case } from './conformance-cases.ts';
import { CASES, layout, plain } from './conformance-cases.ts';
import { compare, decodeRows, encodeRows, poisoned } from './conformance-values.ts';
import { denseMatrix } from './dense.ts';
import { openReferenceBackend } from './reference.ts';
import { layoutWidth, rowBytes } from './shapes.ts';

const PRECISIONS: readonly Precision[] = ['f32', 'f16', 'q8_0'];

/**
 * Declared tolerances of products by the precision of their matrix: error energy over energy, and the largest error over
 * the root mean square. q8_0 rounds both operands to 8 bits per 32 values, f16 both to 11 bits.
 */
const TOLERANCES: Readonly<Record<Precision, { readonly nmse: number; readonly peak: number }>> = {
  f32: { nmse: 1e-11, peak: 1e-4 },
  f16: { nmse: 5e-7, peak: 1e-2 },
  q8_0: { nmse: 2e-4, peak: 0.2 },
};
/** What rounding to the rows' element adds to an error energy. */
const ELEMENT_NMSE: Readonly<Record<RowLayout['element'], number>> = { f32: 0, f16: 1e-6, bf16: 5e-5 };

/**
 * Registers the suite for one backend. The reference runs it too: against itself the comparisons hold trivially, but
 * round trips, layer ranges, poison and the closed-form answers can fail.
 */
export function testBackend(name: string, open: () => Backend): void {
  const oracle = openReferenceBackend();
  const backend = open();
  let executed = 0;
  after(() => {
    backend.close();
    backend.close(); // idempotent
    assert.ok(executed >= CASES.length, `${name}: only ${executed} cases ran`);
  });

  for (const [index, example] of CASES.entries()) {
    test(`${name} agrees with the reference: ${example.name}`, async () => {
      await checkCase(backend, oracle, example, index);
      executed++;
    });
  }

  test(`${name} picks channels, subtracts the mean and turns by the textbook angle`, () => checkKnownAnswers(backend));

  test(`${name} multiplies by a range of a matrix's rows`, async () => {
    const random = seededRandom(77);
    const [rows, columns, n] = [70, 45, 13];
    const values = Float32Array.from({ length: rows * columns }, () => random.normal());
    const x = Float32Array.from({ length: n * columns }, () => random.normal());
    for (const precision of PRECISIONS) {
      const matrix = await backend.prepareMatrix(denseMatrix(values, rows, columns), precision);
      const whole = poisoned(n * rows);
      const part = poisoned(n * 21);
      await matrix.multiply(x, n, whole);
      await matrix.multiply(x, n, part, { startRow: 33, endRow: 54 });
      matrix.close();
      const expected = new Float64Array(n * rows);
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < rows; j++) {
          for (let k = 0; k < columns; k++) expected[i * rows + j]! += x[i * columns + k]! * values[j * columns + k]!;
        }
      }
      compare(`${precision} product`, whole, expected, TOLERANCES[precision]);
      for (let i = 0; i < n; i++) {
        assert.deepEqual(part.subarray(i * 21, (i + 1) * 21), whole.subarray(i * rows + 33, i * rows + 54));
      }
    }
  });

  test(`${name} reads and writes rows where they lie in a larger buffer, and nothing beside them`, async () => {
    const fit = layout(3, 2, 16);
    const spec = { ...transform(fit, { ...plain, dims: 16 }, 32, seededRandom(8)), precision: 'f32' as const };
    const tokens = 300; // more than a graph takes at once
    const values = seededRandom(9);
    const rows = encodeRows(
      'f16',
      Float32Array.from({ length: tokens * 96 }, () => values.normal()),
    );
    const positions = Int32Array.from({ length: tokens }, (_, t) => 2 * t);
    const layerBytes = tokens * 64;
    const placement = { offsetBytes: 34, layerStrideBytes: layerBytes + 18 };
    const spread = new Uint8Array(34 + 3 * (layerBytes + 18)).fill(0x55);
    for (let i = 0; i < 3; i++) {
      spread.set(rows.subarray(i * layerBytes, (i + 1) * layerBytes), 34 + i * (layerBytes + 18));
    }
    const analysis = await backend.prepareAnalysis(spec);
    const [packed, placed] = [poisoned(tokens * 32), poisoned(tokens * 32)];
    await analysis.project(rows, positions, packed);
    await analysis.project(spread, positions, placed, placement);
    assert.deepEqual(placed, packed);
    const synthesis = await backend.prepareSynthesis(spec);
    const range = { startLayer: 1, endLayer: 3 };
    const whole = new Uint8Array(2 * layerBytes);
    await synthesis.reconstruct({ values: packed }, positions, range, whole);
    const expected = spread.slice();
    for (let i = 0; i < 2; i++) {
      expected.set(whole.subarray(i * layerBytes, (i + 1) * layerBytes), 34 + i * (layerBytes + 18));
    }
    await synthesis.reconstruct({ values: packed }, positions, range, spread, placement);
    assert.deepEqual(spread, expected);
    for (const bad of [
      { offsetBytes: -2, layerStrideBytes: layerBytes },
      { offsetBytes: 0, layerStrideBytes: layerBytes - 2 },
      { offsetBytes: 120, layerStrideBytes: 2 * layerBytes },
      { offsetBytes: 0.5, layerStrideBytes: layerBytes },
    ]) {
      await assert.rejects(async () => synthesis.reconstruct({ values: packed }, positions, range, spread, bad));
      await assert.rejects(async () => analysis.project(spread, positions, placed, bad));
    }
    analysis.close();
    synthesis.close();
  });

  test(`${name} leaves out what follows each token's leading coefficients`, async () => {
    const fit = layout(3, 2, 16);
    const spec = transform(fit, { ...plain, dims: 16 }, 80, seededRandom(12));
    const tokens = 150;
    const random = seededRandom(13);
    const leading = Int32Array.from({ length: tokens }, (_, t) => (t === 5 ? 0 : t === 6 ? 80 : random.below(81)));
    const values = Float32Array.from({ length: tokens * 80 }, (_, i) =>
      i % 80 < leading[Math.floor(i / 80)]! ? random.normal() : 0,
    );
    const positions = Int32Array.from({ length: tokens }, (_, t) => 3 * t);
    const layerBytes = tokens * 64;
    const placement = { offsetBytes: 10, layerStrideBytes: layerBytes + 6 };
    const range = { startLayer: 1, endLayer: 3 };
    for (const precision of PRECISIONS) {
      const synthesis = await backend.prepareSynthesis({ ...spec, precision });
      const whole = new Uint8Array(2 * layerBytes);
      await synthesis.reconstruct({ values }, positions, range, whole);
      const placed = new Uint8Array(10 + 2 * (layerBytes + 6)).fill(0x55);
      const untouched = placed.slice();
      await synthesis.reconstruct({ values, leading }, positions, range, placed, placement);
      for (let i = 0; i < 2; i++) {
        const at = 10 + i * (layerBytes + 6);
        const rows = placed.slice(at, at + layerBytes);
        const expected = whole.subarray(i * layerBytes, (i + 1) * layerBytes);
        compare(`${precision} rows`, decodeRows('f16', rows), decodeRows('f16', expected), TOLERANCES.f16);
        placed.set(untouched.subarray(at, at + layerBytes), at);
      }
      assert.deepEqual(placed, untouched);
      for (const bad of [leading.subarray(1), leading.map(() => 81), leading.map(() => -1)]) {
        await assert.rejects(async () => synthesis.reconstruct({ values, leading: bad }, positions, range, whole));
      }
      synthesis.close();
    }
  });

  test(`${name} turns NaN and Inf in a token into non-finite coefficients of that token alone`, async () => {
    const spec = transform(layout(2, 2, 16), null, 32, seededRandom(5));
    const rows = encodeRows(
      'f16',
      Float32Array.from({ length: 5 * 64 }, (_, i) => Math.sin(i)),
    );
    const halves = new Uint16Array(rows.buffer);
    halves[32 + 7] = 0x7e00; // layer 0, token 1: NaN
    halves[5 * 32 + 3 * 32 + 9] = 0xfc00; // layer 1, token 3: −Inf
    for (const precision of PRECISIONS) {
      const analysis = await backend.prepareAnalysis({ ...spec, precision });
      const out = poisoned(5 * 32);
      await analysis.project(rows, Int32Array.of(0, 1, 2, 3, 4), out);
      analysis.close();
      for (let t = 0; t < 5; t++) {
        const finite = out.subarray(t * 32, (t + 1) * 32).filter(Number.isFinite).length;
        assert.equal(finite, t === 1 || t === 3 ? 0 : 32, `${precision}, token ${t}`);
      }
    }
  });

  test(`${name} gives overlapping calls the results of calls in turn`, async () => {
    const spec = transform(layout(2, 2, 16), { ...plain, dims: 16 }, 32, seededRandom(6));
    const analysis = await backend.prepareAnalysis({ ...spec, precision: 'q8_0' });
    const jobs = Array.from({ length: 8 }, (_, i) => ({
      rows: encodeRows(
        'f16',
        Float32Array.from({ length: 64 * (i + 1) }, (_unused, k) => Math.sin(k * (i + 1))),
      ),
      positions: Int32Array.from({ length: i + 1 }, (_unused, k) => k + i),
      out: poisoned(32 * (i + 1)),
      again: poisoned(32 * (i + 1)),
    }));
    const running = jobs.map(({ rows, positions, out }) => analysis.project(rows, positions, out));
    await Promise.all(running);
    for (const { rows, positions, out, again } of jobs) {
      await analysis.project(rows, positions, again);
      assert.deepEqual(again, out);
    }
    const last = analysis.project(jobs[7]!.rows, jobs[7]!.positions, jobs[7]!.again.fill(NaN));
    analysis.close(); // running work still ends
    await last;
    assert.deepEqual(jobs[7]!.again, jobs[7]!.out);
  });

  test(`${name} refuses rotations and lengths that cannot be`, async () => {
    const fit = layout(1, 1, 8);
    const rows = new Uint8Array(16);
    const out = new Float32Array(8);
    for (const bad of [{ dims: 10 }, { dims: 3 }, { dims: 0 }, { dims: NaN }, { frequencyFactors: [1, 2] }]) {
      await assert.rejects(
        async () => backend.readRows(fit, { ...plain, ...bad }, rows, Int32Array.of(0), out),
        (error) => isKvtcError(error, 'KVTC_ROPE_UNSUPPORTED'),
      );
    }
    await assert.rejects(async () => backend.readRows(fit, null, rows.subarray(1), Int32Array.of(0), out));
    await assert.rejects(async () => backend.readRows(fit, null, rows, Int32Array.of(0), out.subarray(1)));
    await assert.rejects(async () => backend.writeRows(fit, null, out, Int32Array.of(0, 1), rows));
    const spec = transform(fit, null, 4, seededRandom(1));
    await assert.rejects(async () =>
      backend.prepareAnalysis({ ...spec, mean: spec.mean.subarray(1), precision: 'f32' }),
    );
    const narrow = denseMatrix(new Float32Array(4 * 7), 4, 7);
    const short = denseMatrix(new Float32Array(3 * 8), 3, 8);
    for (const bad of [{ analysis: narrow }, { synthesis: narrow }, { analysis: short }, { synthesis: short }]) {
      await assert.rejects(async () => backend.prepareAnalysis({ ...spec, ...bad, precision: 'f32' }));
      await assert.rejects(async () => backend.prepareSynthesis({ ...spec, ...bad, precision: 'f32' }));
    }
    const synthesis = await backend.prepareSynthesis({ ...spec, precision: 'f32' });
    const coefficients = new Float32Array(4);
    for (const [startLayer, endLayer] of [
      [0, 0],
      [0, 2],
      [-1, 1],
      [0.5, 1],
    ] as const) {
      await assert.rejects(async () =>
        synthesis.reconstruct({ values: coefficients }, Int32Array.of(0), { startLayer, endLayer }, rows),
      );
    }
    synthesis.close();
  });

  test(`${name} refuses work after close`, async () => {
    const closed = open();
    closed.close();
    await assert.rejects(async () => closed.prepareMatrix(denseMatrix(new Float32Array(4), 2, 2), 'f32'));
  });
}

function transform(
  rowLayout: RowLayout,
  rope: RopeDescription | null,
  rank: number,
  random: Random,
): Omit<TransformSpec, 'precision'> {
  const width = layoutWidth(rowLayout);
  const draw = (): MatrixSource =>
    denseMatrix(
      Float32Array.from({ length: rank * width }, () => random.normal() / Math.sqrt(width)),
      rank,
      width,
    );
  const mean = Float32Array.from({ length: width }, () => random.normal() / 4);
  return { layout: rowLayout, rope, mean, analysis: draw(), synthesis: draw() };
}

async function checkCase(backend: Backend, oracle: Backend, example: Case, seed: number): Promise<void> {
  const { layout: rowLayout, rope, tokens, rank } = example;
  const { element, layers } = rowLayout;
  const random = seededRandom(seed + 100);
  const width = layoutWidth(rowLayout);
  const draw = example.content ?? ((r: Random): number => r.normal());
  const rows = encodeRows(
    element,
    Float32Array.from({ length: tokens * width }, (_, i) => draw(random, i)),
  );
  const positions = Int32Array.from({ length: tokens }, (_, t) => (t === 0 ? 0 : random.below(30_000)));

  // Rows alone: reading is exact without RoPE, and f32-exact with it; writing what was read gives the rows back.
  const values = poisoned(tokens * width);
  const expectedValues = new Float32Array(tokens * width);
  await backend.readRows(rowLayout, rope, rows, positions, values);
  await oracle.readRows(rowLayout, rope, rows, positions, expectedValues);
  if (rope === null) assert.deepEqual(values, expectedValues);
  else compare('values', values, expectedValues, { nmse: 1e-11, peak: 1e-4 });
  const written = new Uint8Array(rows.length).fill(0xff);
  await backend.writeRows(rowLayout, rope, values, positions, written);
  if (rope === null) assert.deepEqual(written, rows);
  else
    compare('rows', decodeRows(element, written), decodeRows(element, rows), {
      nmse: 1e-11 + ELEMENT_NMSE[element],
      peak: 0.1,
    });

  const spec = transform(rowLayout, rope, rank, random);
  const truth = await oracle.prepareAnalysis({ ...spec, precision: 'f32' });
  const inverse = await oracle.prepareSynthesis({ ...spec, precision: 'f32' });
  const expected = new Float32Array(tokens * rank);
  const expectedRows = new Uint8Array(rows.length);
  await truth.project(rows, positions, expected);
  const modest = expected.map((c) => Math.max(-1e3, Math.min(1e3, c))); // keeps f16 rows from overflowing
  await inverse.reconstruct({ values: modest }, positions, { startLayer: 0, endLayer: layers }, expectedRows);

  for (const precision of example.precisions ?? PRECISIONS) {
    const tolerance = TOLERANCES[precision];
    const analysis = await backend.prepareAnalysis({ ...spec, precision });
    const synthesis = await backend.prepareSynthesis({ ...spec, precision });
    assert.equal(analysis.rank, rank);
    assert.equal(synthesis.rank, rank);
    const coefficients = poisoned(tokens * rank);
    await analysis.project(rows, positions, coefficients);
    compare(`${precision} coefficients`, coefficients, expected, tolerance);
    const restored = new Uint8Array(rows.length).fill(0xff);
    await synthesis.reconstruct({ values: modest }, positions, { startLayer: 0, endLayer: layers }, restored);
    const allowed = { nmse: tolerance.nmse + ELEMENT_NMSE[element], peak: Math.max(tolerance.peak, 0.1) };
    compare(`${precision} rows`, decodeRows(element, restored), decodeRows(element, expectedRows), allowed);
    const layerBytes = tokens * rowBytes(rowLayout);
    for (const [startLayer, endLayer] of [
      [0, 1],
      [layers - 1, layers],
      [layers >> 1, layers],
    ] as const) {
      const slice = new Uint8Array((endLayer - startLayer) * layerBytes).fill(0xff);
      await synthesis.reconstruct({ values: modest }, positions, { startLayer, endLayer }, slice);
      // Kernels differ in the last bit with the number of rows, so that equality is not promised.
      compare(
        `${precision} layers ${startLayer} to ${endLayer}`,
        decodeRows(element, slice),
        decodeRows(element, restored.subarray(startLayer * layerBytes, endLayer * layerBytes)),
        { nmse: 1e-11 + ELEMENT_NMSE[element], peak: 0.1 },
      );
    }
    analysis.close();
    synthesis.close();
  }
}

/** Answers in closed form: a basis that picks single channels, a mean, and rotations by pos · base^(−2i/d). */
async function checkKnownAnswers(backend: Backend): Promise<void> {
  const rowLayout = layout(2, 2, 4, 'f32');
  const width = 16;
  const tokens = 3;
  const positions = Int32Array.of(0, 1, 40);
  const mean = Float32Array.from({ length: width }, (_, i) => i / 8);
  const picks = [5, 0, 15, 10];
  const basis = new Float32Array(picks.length * width);
  picks.forEach((channel, k) => (basis[k * width + channel] = 2));
  // Value of a channel before rotation: token, layer, head and place can all be read off it.
  const value = (t: number, channel: number): number => t + channel / 16;
  for (const pairing of ['interleaved', 'half-split'] as const) {
    const rope = { ...plain, pairing, dims: 4, frequencyBase: 100 };
    const rows = new Float32Array(tokens * width);
    for (let t = 0; t < tokens; t++) {
      for (let layer = 0; layer < 2; layer++) {
        for (let head = 0; head < 2; head++) {
          for (let i = 0; i < 2; i++) {
            const [a, b] = pairing === 'interleaved' ? [2 * i, 2 * i + 1] : [i, i + 2];
            const channel = layer * 8 + head * 4;
            const at = (layer * tokens + t) * 8 + head * 4;
            const angle = positions[t]! * 100 ** (-i / 2);
            const x = value(t, channel + a);
            const y = value(t, channel + b);
            rows[at + a] = x * Math.cos(angle) - y * Math.sin(angle);
            rows[at + b] = x * Math.sin(angle) + y * Math.cos(angle);
          }
        }
      }
    }
    const spec: TransformSpec = {
      layout: rowLayout,
      rope,
      mean,
      analysis: denseMatrix(basis, 4, width),
      synthesis: denseMatrix(basis, 4, width),
      precision: 'f32',
    };
    const analysis = await backend.prepareAnalysis(spec);
    const coefficients = poisoned(tokens * 4);
    await analysis.project(new Uint8Array(rows.buffer), positions, coefficients);
    analysis.close();
    const synthesis = await backend.prepareSynthesis(spec);
    const restored = new Uint8Array(rows.byteLength).fill(0xff);
    // Half of each picked coefficient brings its channel back; the others rest at the mean.
    const quarter = coefficients.map((c) => c / 4);
    await synthesis.reconstruct({ values: quarter }, Int32Array.of(0, 0, 0), { startLayer: 0, endLayer: 2 }, restored);
    synthesis.close();
    const back = new Float32Array(restored.buffer);
    for (let t = 0; t < tokens; t++) {
      picks.forEach((channel, k) => {
        const expected = 2 * (value(t, channel) - mean[channel]!);
        assert.ok(Math.abs(coefficients[t * 4 + k]! - expected) < 1e-4, `${pairing} coefficient ${t}, ${k}`);
      });
      for (let channel = 0; channel < width; channel++) {
        const at = ((channel >> 3) * tokens + t) * 8 + (channel & 7);
        const expected = picks.includes(channel) ? value(t, channel) : mean[channel]!;
        assert.ok(Math.abs(back[at]! - expected) < 1e-4, `${pairing} restored ${t}, ${channel}`);
      }
    }
  }
}
