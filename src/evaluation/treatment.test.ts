// Treatments on states made here: what they change, what they leave, what they count.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import type { CacheGeometry, ElementType, StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { f32ToF16 } from '../base/half.ts';
import { seededRandom } from '../base/random.ts';
import { createState, gatherRows, parseState, scatterRows } from '../engines/llama/state.ts';
import { evictionTreatment, rowRivals } from './rivals/treatments.ts';
import type { Treatment } from './treatment.ts';
import { exactTreatment, floorTreatment } from './treatment.ts';

const GEOMETRY: CacheGeometry = { layers: 3, kvHeads: 2, keyHeadDim: 32, valueHeadDim: 64 };

function randomState(tokenCount: number, vTransposed: boolean, element: ElementType = 'f16'): Uint8Array {
  const random = seededRandom(tokenCount);
  const { state, view } = createState({
    format: 'blob',
    positions: Int32Array.from({ length: tokenCount }, (_, i) => i),
    layers: GEOMETRY.layers,
    keyType: element,
    valueType: element,
    keyWidth: 64,
    valueWidth: 128,
    vTransposed,
  });
  if (element !== 'f16') return state;
  for (const stream of STREAMS) {
    const values = GEOMETRY.layers * tokenCount * GEOMETRY.kvHeads * headDim(GEOMETRY, stream);
    const halves = Uint16Array.from({ length: values }, () => f32ToF16(random.normal()));
    scatterRows(view, stream, allLayers, { startToken: 0, endToken: tokenCount }, new Uint8Array(halves.buffer));
  }
  return state;
}

const allLayers = { startLayer: 0, endLayer: GEOMETRY.layers };

function rowsOf(state: Uint8Array, stream: StreamKind, startToken: number, endToken: number): Uint16Array {
  const out = new Uint8Array(
    GEOMETRY.layers * (endToken - startToken) * GEOMETRY.kvHeads * headDim(GEOMETRY, stream) * 2,
  );
  gatherRows(parseState(state), stream, allLayers, { startToken, endToken }, out);
  return new Uint16Array(out.buffer);
}

async function apply(treatment: Treatment, state: Uint8Array) {
  const before = state.slice();
  const treated = await treatment.apply(state, new Int32Array(0), {});
  assert.deepEqual(state, before, `${treatment.label} changed the exact state`);
  return treated;
}

describe('treatments', () => {
  for (const vTransposed of [false, true]) {
    it(`the floor clears three bits of every value and no byte else (transposed: ${vTransposed})`, async () => {
      const state = randomState(40, vTransposed);
      const { state: treated } = await apply(floorTreatment, state);
      for (const stream of STREAMS) {
        assert.deepEqual(
          rowsOf(treated, stream, 0, 40),
          rowsOf(state, stream, 0, 40).map((half) => half & 0xfff8),
        );
      }
      const differing = treated.reduce((sum, byte, i) => sum + (byte === state[i] ? 0 : 1), 0);
      const [values, share] = [40 * 3 * 192, 7 / 8];
      assert.ok(Math.abs(differing / (values * share) - 1) < 0.02, `${differing} bytes differ`);
    });
  }

  it('the floor refuses caches that are not f16', async () => {
    await assert.rejects(floorTreatment.apply(randomState(4, false, 'f32'), new Int32Array(0), {}), (error) =>
      isKvtcError(error, 'KVTC_STATE_UNSUPPORTED'),
    );
  });

  it('exact gives the state back', async () => {
    const state = randomState(8, false);
    const treated = await apply(exactTreatment, state);
    assert.deepEqual(treated.state, state);
    assert.equal(treated.storedBytes, 8 * 3 * 192 * 2);
  });

  it('rivals on rows change coded tokens alone, and count what they store', async () => {
    const state = randomState(256, true);
    const rawBytes = 256 * 3 * 192 * 2;
    const expected: Record<string, [paper: number, effective: number]> = {
      'q8_0 on rows': [16 / 8.5, 16 / 8.5],
      'q4_0 on rows': [16 / 4.5, 16 / 4.5],
      'q4_1 on rows': [16 / 5, 16 / 5],
      'fp8 per head': [2, 2],
      'KIVI 4 bit': [16 / 5, 2 / (1 + 5 / 16)],
      'KIVI 2 bit': [16 / 3, 2 / (1 + 3 / 16)],
    };
    const rivals = rowRivals(GEOMETRY);
    assert.deepEqual(
      rivals.map(({ label }) => label),
      Object.keys(expected),
    );
    for (const rival of rivals) {
      const treated = await apply(rival, state);
      const [paper, effective] = expected[rival.label] as [number, number];
      assert.ok(Math.abs((treated.paperRatio as number) - paper) < 1e-9, `${rival.label}: ${treated.paperRatio}`);
      assert.ok(Math.abs((treated.effectiveRatio as number) - effective) < 1e-9, rival.label);
      assert.ok(Math.abs((treated.storedBytes as number) - rawBytes / effective) < 1e-6, rival.label);
      const window = rival.label.startsWith('KIVI') ? 128 : 0;
      for (const stream of STREAMS) {
        assert.notDeepEqual(rowsOf(treated.state, stream, 0, 256 - window), rowsOf(state, stream, 0, 256 - window));
        assert.deepEqual(rowsOf(treated.state, stream, 256 - window, 256), rowsOf(state, stream, 256 - window, 256));
      }
    }
  });

  it('eviction keeps sinks and newest tokens at their positions', async () => {
    const state = randomState(64, false);
    const treated = await apply(evictionTreatment(GEOMETRY, 4), state);
    const left = parseState(treated.state);
    assert.deepEqual([...left.positions], [0, 1, 2, 3, ...Array.from({ length: 12 }, (_, i) => 52 + i)]);
    for (const stream of STREAMS) {
      assert.deepEqual(rowsOf(treated.state, stream, 0, 4), rowsOf(state, stream, 0, 4));
      assert.deepEqual(rowsOf(treated.state, stream, 4, 16), rowsOf(state, stream, 52, 64));
    }
    assert.equal(treated.effectiveRatio, 4);
    const one = await apply(evictionTreatment(GEOMETRY, 1), state);
    assert.deepEqual(one.state, state);
    assert.throws(
      () => evictionTreatment(GEOMETRY, 0.5),
      (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'),
    );
  });

  it('rivals refuse a state of another shape', async () => {
    const [rival] = rowRivals({ ...GEOMETRY, kvHeads: 4 });
    await assert.rejects((rival as Treatment).apply(randomState(4, false), new Int32Array(0), {}), (error) =>
      isKvtcError(error, 'KVTC_STATE_MISMATCH'),
    );
  });
});
