import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { ErrorCode } from '../../base/errors.ts';
import { isKvtcError } from '../../base/errors.ts';
import { seededRandom } from '../../base/random.ts';
import type { NewState, StateView } from './state.ts';
import { convertState, createState, gatherRows, parseState, rowBytesOf, scatterRows } from './state.ts';

const base: NewState = {
  format: 'blob',
  positions: Int32Array.of(0, 1, 2, 5, 9),
  layers: 3,
  keyType: 'f16',
  valueType: 'f16',
  keyWidth: 8,
  valueWidth: 6,
  vTransposed: false,
};

const throwsCode = (run: () => unknown, code: ErrorCode): void =>
  assert.throws(run, (error) => isKvtcError(error, code));

const everything = (
  view: StateView,
): [{ startLayer: number; endLayer: number }, { startToken: number; endToken: number }] => [
  { startLayer: 0, endLayer: view.layers },
  { startToken: 0, endToken: view.tokenCount },
];

function fillRandomly(view: StateView): { key: Uint8Array; value: Uint8Array } {
  const random = seededRandom(3);
  const rows = (stream: 'key' | 'value'): Uint8Array => {
    const filled = Uint8Array.from({ length: view.layers * view.tokenCount * rowBytesOf(view, stream) }, () =>
      random.below(256),
    );
    scatterRows(view, stream, ...everything(view), filled);
    return filled;
  };
  return { key: rows('key'), value: rows('value') };
}

test('writes the bytes the format says', () => {
  const { state, view } = createState({
    ...base,
    format: 'file',
    tokens: Int32Array.of(7, 8),
    positions: Int32Array.of(4, 6),
    layers: 1,
    valueType: 'f32',
    keyWidth: 1,
    valueWidth: 2,
    vTransposed: true,
    streams: 2,
  });
  scatterRows(view, 'key', ...everything(view), Uint8Array.of(0xa0, 0xa1, 0xb0, 0xb1));
  scatterRows(
    view,
    'value',
    ...everything(view),
    Uint8Array.from({ length: 16 }, (_, i) => i),
  );
  const words = [0x67677371, 3, 2, 7, 8, 2, 2, 4, 1, 0, 6, 1, 0, 1, 1, 1, 2, 0];
  const bytes = new Uint8Array(4 * words.length + 4 + 12 + 16 + 4);
  const view32 = new DataView(bytes.buffer);
  words.forEach((word, i) => view32.setUint32(i * 4, word, true));
  bytes.set([0xa0, 0xa1, 0xb0, 0xb1], 72);
  [0, 4, 2].forEach((word, i) => view32.setUint32(76 + i * 4, word, true));
  // Channel-major: channel 0 of both tokens, then channel 1; the second stream's cell count, zero, ends the state.
  bytes.set([0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15], 88);
  assert.deepEqual(state, bytes);
});

for (const vTransposed of [false, true]) {
  for (const type of ['f32', 'f16', 'bf16'] as const) {
    test(`gives back the rows it was given, ${type}, values ${vTransposed ? '' : 'not '}transposed`, () => {
      const { view } = createState({ ...base, keyType: type, valueType: type, vTransposed });
      const rows = fillRandomly(view);
      for (const stream of ['key', 'value'] as const) {
        const out = new Uint8Array(rows[stream].length);
        gatherRows(view, stream, ...everything(view), out);
        assert.deepEqual(out, rows[stream]);
        const rowBytes = rowBytesOf(view, stream);
        const part = new Uint8Array(2 * 3 * rowBytes);
        gatherRows(view, stream, { startLayer: 1, endLayer: 3 }, { startToken: 1, endToken: 4 }, part);
        const expected = [1, 2].map((layer) =>
          rows[stream].subarray((layer * 5 + 1) * rowBytes, (layer * 5 + 4) * rowBytes),
        );
        assert.deepEqual(part, new Uint8Array(Buffer.concat(expected)));
      }
    });
  }
}

test('reads and writes cells that are not in order of position', () => {
  for (const vTransposed of [false, true]) {
    const { state, view } = createState({ ...base, vTransposed });
    const rows = fillRandomly(view);
    // Swap the positions of cells 0 and 3: token order is then 3, 1, 2, 0, 4.
    const words = new DataView(state.buffer);
    words.setInt32(16, 5, true);
    words.setInt32(16 + 36, 0, true);
    const shuffled = parseState(state);
    assert.deepEqual([...shuffled.positions], [0, 1, 2, 5, 9]);
    for (const stream of ['key', 'value'] as const) {
      const rowBytes = rowBytesOf(view, stream);
      const out = new Uint8Array(rows[stream].length);
      gatherRows(shuffled, stream, ...everything(shuffled), out);
      const row = (bytes: Uint8Array, token: number): Uint8Array =>
        bytes.slice(token * rowBytes, (token + 1) * rowBytes);
      [3, 1, 2, 0, 4].forEach((cell, token) => assert.deepEqual(row(out, token), row(rows[stream], cell)));
      const before = state.slice();
      scatterRows(shuffled, stream, ...everything(shuffled), out);
      assert.deepEqual(state, before);
    }
  }
});

test('reads states at odd addresses', () => {
  const { state, view } = createState({ ...base, valueType: 'f32', vTransposed: true });
  const rows = fillRandomly(view);
  const moved = new Uint8Array(state.length + 1);
  moved.set(state, 1);
  const shifted = parseState(moved.subarray(1));
  const out = new Uint8Array(rows.value.length);
  gatherRows(shifted, 'value', ...everything(shifted), out);
  assert.deepEqual(out, rows.value);
  const [layers, tokens] = everything(shifted);
  scatterRows(
    shifted,
    'value',
    layers,
    tokens,
    out.map((byte) => byte ^ 255),
  );
  gatherRows(shifted, 'value', layers, tokens, out);
  assert.deepEqual(
    out.map((byte) => byte ^ 255),
    rows.value,
  );
});

test('turns blobs into files and back without touching the memory', () => {
  const { state } = createState(base);
  const tokens = Int32Array.of(1, 2, 3, 4, 5);
  const file = convertState(state, 'file', tokens);
  const view = parseState(file);
  assert.deepEqual([view.kind, view.version, [...(view.tokens ?? [])]], ['file', 3, [1, 2, 3, 4, 5]]);
  assert.deepEqual(convertState(file, 'blob'), state);
  assert.deepEqual(convertState(file, 'file'), file);
  assert.equal(parseState(convertState(state, 'file')).tokens, null);
  throwsCode(() => convertState(state, 'file', Int32Array.of(1)), 'KVTC_STATE_MISMATCH');
});

test("unpacks llama-server's token record", () => {
  const { state } = createState(base);
  const pack = (words: readonly number[]): Uint8Array => {
    const out = new Uint8Array(12 + words.length * 4 + state.length - 8);
    const view = new DataView(out.buffer);
    [0x67677371, 3, words.length, ...words].forEach((word, i) => view.setInt32(i * 4, word, true));
    out.set(state.subarray(8), 12 + words.length * 4);
    return out;
  };
  assert.deepEqual([...(parseState(pack([-1, 1, 5, 10, 11, 12, 13, 14, 0])).tokens ?? [])], [10, 11, 12, 13, 14]);
  throwsCode(() => parseState(pack([-1, 2, 5, 10, 11, 12, 13, 14, 0])), 'KVTC_STATE_UNSUPPORTED');
  throwsCode(() => parseState(pack([-1, 1, 5, 10, 11, -1, -1, 14, 1, 2, 0])), 'KVTC_STATE_UNSUPPORTED');
  throwsCode(() => parseState(pack([-1, 1, 9, 10, 11, 12, 13, 14, 0])), 'KVTC_STATE_MALFORMED');
  throwsCode(() => parseState(pack([-1, 1, 5, 10, 11, 12, 13, 14, 0, 0])), 'KVTC_STATE_MALFORMED');
  throwsCode(() => parseState(pack([-1])), 'KVTC_STATE_MALFORMED');
  throwsCode(() => parseState(pack([1, 2, 3])), 'KVTC_STATE_MALFORMED');
  throwsCode(() => parseState(pack([1, 2, 3, 4, -5])), 'KVTC_STATE_MALFORMED');
});

test('refuses states cut at any byte, and bytes after the end', () => {
  for (const format of ['blob', 'file'] as const) {
    const { state } = createState({ ...base, format, tokens: Int32Array.of(1, 2, 3, 4, 5), streams: 2 });
    for (let end = 0; end < state.length; end++) {
      throwsCode(() => parseState(state.subarray(0, end)), 'KVTC_STATE_MALFORMED');
    }
    for (const extra of [1, 4, 40]) {
      const longer = new Uint8Array(state.length + extra);
      longer.set(state);
      throwsCode(() => parseState(longer), 'KVTC_STATE_MALFORMED');
    }
  }
});

test('names sliding-window and recurrent layouts', () => {
  const { state } = createState(base);
  const memory = state.subarray(8);
  const window = new Uint8Array(state.length + memory.length);
  window.set(state);
  window.set(memory, state.length);
  assert.throws(
    () => parseState(window),
    (error) => isKvtcError(error, 'KVTC_STATE_UNSUPPORTED') && /sliding window/.test(error.message),
  );
  const recurrent = new Uint8Array(state.length + 4 + 8 + 8 + 100);
  recurrent.set(state);
  const words = new DataView(recurrent.buffer, state.length);
  [1, 9, 0, 0, 2].forEach((word, i) => words.setUint32(i * 4, word, true));
  assert.throws(
    () => parseState(recurrent),
    (error) => isKvtcError(error, 'KVTC_STATE_UNSUPPORTED') && /recurrent/.test(error.message),
  );
});

const HOSTILE: readonly (readonly [what: string, offsetBytes: number, word: number, code: ErrorCode])[] = [
  ['an unknown magic', 0, 0x12345678, 'KVTC_STATE_MALFORMED'],
  ['no stream', 8, 0, 'KVTC_STATE_MALFORMED'],
  ['a billion streams', 8, 1_000_000_000, 'KVTC_STATE_MALFORMED'],
  ['more cells than bytes', 12, 0xffff_ffff, 'KVTC_STATE_MALFORMED'],
  ['a negative position', 16, 0xffff_fff0, 'KVTC_STATE_MALFORMED'],
  ['a position twice', 16, 2, 'KVTC_STATE_UNSUPPORTED'],
  ['a cell of two sequences', 20, 2, 'KVTC_STATE_MALFORMED'],
  ['an unknown value layout', 76, 2, 'KVTC_STATE_MALFORMED'],
  ['no layers', 80, 0, 'KVTC_STATE_MALFORMED'],
  ['a billion layers', 80, 1_000_000_000, 'KVTC_STATE_MALFORMED'],
  ['an unknown type', 84, 99, 'KVTC_STATE_MALFORMED'],
  ['4-bit keys', 84, 2, 'KVTC_STATE_UNSUPPORTED'],
  ['rows of no bytes', 88, 0, 'KVTC_STATE_MALFORMED'],
  ['rows of half an element', 88, 15, 'KVTC_STATE_MALFORMED'],
  ['rows of 2^60 bytes', 92, 0x1000_0000, 'KVTC_STATE_MALFORMED'],
  ['layers of other types', 84 + 12 + 5 * 16, 0, 'KVTC_STATE_UNSUPPORTED'],
];

for (const [what, offsetBytes, word, code] of HOSTILE) {
  test(`refuses ${what}`, () => {
    const { state } = createState(base);
    new DataView(state.buffer).setUint32(offsetBytes, word, true);
    throwsCode(() => parseState(state), code);
  });
}

test('refuses other versions of the file', () => {
  const { state } = createState({ ...base, format: 'file' });
  const words = new DataView(state.buffer);
  words.setUint32(4, 2, true);
  assert.equal(parseState(state).version, 2);
  words.setUint32(4, 4, true);
  throwsCode(() => parseState(state), 'KVTC_STATE_UNSUPPORTED');
});

test('refuses to make states that cannot be', () => {
  throwsCode(() => createState({ ...base, positions: new Int32Array(0) }), 'KVTC_STATE_UNSUPPORTED');
  throwsCode(() => createState({ ...base, positions: Int32Array.of(1, 1) }), 'KVTC_STATE_MISMATCH');
  throwsCode(() => createState({ ...base, positions: Int32Array.of(-1) }), 'KVTC_STATE_MISMATCH');
  throwsCode(() => createState({ ...base, format: 'file', tokens: Int32Array.of(1) }), 'KVTC_STATE_MISMATCH');
  throwsCode(
    () => createState({ ...base, valueType: 'q8_0', valueWidth: 32, vTransposed: true }),
    'KVTC_STATE_UNSUPPORTED',
  );
});

test('reads a context that holds nothing', () => {
  const empty = Uint8Array.of(0xd8, 0x3c, 0x14, 0xaf, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0);
  assert.equal(parseState(empty).tokenCount, 0);
});

test('meets any damage with a coded error or a state within the bytes', () => {
  const { state } = createState({ ...base, format: 'file', tokens: Int32Array.of(1, 2, 3, 4, 5) });
  const damage = fc.array(fc.tuple(fc.nat(state.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(damage, fc.nat(state.length), (changes, cut) => {
      const bytes = state.slice(0, cut % 3 === 0 ? cut : state.length);
      for (const [at, byte] of changes) if (at < bytes.length) bytes[at] = byte;
      try {
        const view = parseState(bytes);
        for (const stream of ['key', 'value'] as const) {
          const out = new Uint8Array(view.layers * view.tokenCount * rowBytesOf(view, stream));
          gatherRows(view, stream, ...everything(view), out);
        }
      } catch (error) {
        assert.ok(isKvtcError(error) && error.code.startsWith('KVTC_STATE_'), String(error));
      }
    }),
    { numRuns: 4000 },
  );
});
