// A state's rows in another element type: f32, f16, bf16 and q8_0 into one another.
// llama.cpp stores quantised rows turned by a Hadamard matrix, so that outliers spread over a block; this undoes and
// redoes the turn. Does not know contexts or codecs. Source: llama.cpp v0.4.0 (KV cache set-up, ggml's q8_0), restated;
// checked against taps in retype-state.test.ts.

import { KvtcError, invariant } from '../../base/errors.ts';
import type { CacheGeometry, ElementType, StreamKind } from '../../base/geometry.ts';
import { headDim, layerWidth } from '../../base/geometry.ts';
import { decodeBf16, decodeF16, encodeBf16, encodeF16, f16ToF32, f32ToF16 } from '../../base/half.ts';
import type { StateView } from './state.ts';
import { createState, gatherRows, rowBytesOf, scatterRows } from './state.ts';

const BLOCK_VALUES = 32;
const BLOCK_BYTES = 34;
/** Tokens converted at a time; bounds the working memory to a few rows. */
const CHUNK_TOKENS = 256;

export interface RetypeOptions {
  readonly keyType: ElementType;
  readonly valueType: ElementType;
  readonly vTransposed?: boolean | undefined;
  /** False for states of processes that ran with LLAMA_ATTN_ROT_DISABLE=1; the bytes do not tell. Default true. */
  readonly rotated?: boolean | undefined;
}

/**
 * A new state of the same format with rows of other types. From q8_0 the rotation is undone, to q8_0 it is done, as the
 * engine would. Throws KVTC_STATE_MISMATCH when the rows are not of this geometry, KVTC_STATE_UNSUPPORTED for q8_0 heads
 * of a size that blocks do not divide and for transposed q8_0 values.
 */
export function retypeState(
  view: StateView,
  geometry: CacheGeometry,
  options: RetypeOptions,
): { state: Uint8Array<ArrayBuffer>; view: StateView } {
  const types = { key: options.keyType, value: options.valueType };
  const made = createState({
    format: view.kind,
    tokens: view.tokens,
    positions: view.positions,
    layers: view.layers,
    keyType: types.key,
    valueType: types.value,
    keyWidth: layerWidth(geometry, 'key'),
    valueWidth: layerWidth(geometry, 'value'),
    vTransposed: options.vTransposed ?? (view.vTransposed && types.value !== 'q8_0'),
    streams: view.streams,
  });
  for (const stream of ['key', 'value'] as const) {
    const from = stream === 'key' ? view.keyType : view.valueType;
    const width = layerWidth(geometry, stream);
    requireRows(view, stream, from, types[stream], geometry);
    for (let layer = 0; layer < view.layers; layer++) {
      for (let startToken = 0; startToken < view.tokenCount; startToken += CHUNK_TOKENS) {
        const tokens = { startToken, endToken: Math.min(view.tokenCount, startToken + CHUNK_TOKENS) };
        const layers = { startLayer: layer, endLayer: layer + 1 };
        const count = tokens.endToken - startToken;
        const rows = new Uint8Array(count * rowBytesOf(view, stream));
        gatherRows(view, stream, layers, tokens, rows);
        const values = new Float32Array(count * width);
        decodeRows(rows, from, values);
        const turn = options.rotated === false ? 1 : rotationSize(stream, headDim(geometry, stream));
        if (from === 'q8_0') turnBlocks(values, turn);
        if (types[stream] === 'q8_0') turnBlocks(values, turn);
        const encoded = new Uint8Array(count * rowBytesOf(made.view, stream));
        encodeRows(values, types[stream], encoded);
        scatterRows(made.view, stream, layers, tokens, encoded);
      }
    }
  }
  return made;
}

function requireRows(
  view: StateView,
  stream: StreamKind,
  from: ElementType,
  to: ElementType,
  geometry: CacheGeometry,
): void {
  const width = layerWidth(geometry, stream);
  const values = (rowBytesOf(view, stream) * BLOCK_VALUES) / elementBlockBytes(from);
  if (view.layers !== geometry.layers || values !== width) {
    throw new KvtcError(
      'KVTC_STATE_MISMATCH',
      `the state has ${view.layers} layers of ${values} ${stream} values, the model ${geometry.layers} of ${width}`,
      { gotLayers: view.layers, expectedLayers: geometry.layers, gotValues: values, expectedValues: width },
    );
  }
  if ((from === 'q8_0' || to === 'q8_0') && headDim(geometry, stream) % BLOCK_VALUES !== 0) {
    throw new KvtcError(
      'KVTC_STATE_UNSUPPORTED',
      `q8_0 ${stream} heads of ${headDim(geometry, stream)} values do not divide into blocks of ${BLOCK_VALUES}`,
      { headDim: headDim(geometry, stream) },
    );
  }
}

/** Bytes of 32 values. */
function elementBlockBytes(type: ElementType): number {
  return type === 'q8_0' ? BLOCK_BYTES : type === 'f32' ? BLOCK_VALUES * 4 : BLOCK_VALUES * 2;
}

/**
 * Size of the engine's Hadamard blocks: none unless heads are a multiple of 64; for keys the largest 64 · 2ⁿ that divides
 * a head, for values 64.
 */
export function rotationSize(stream: StreamKind, dim: number): number {
  if (dim % 64 !== 0) return 1;
  let size = 64;
  while (stream === 'key' && dim % (size * 2) === 0) size *= 2;
  return size;
}

/** Multiplies each block of `size` values by the orthonormal Hadamard matrix (Sylvester's order), its own inverse. */
function turnBlocks(values: Float32Array, size: number): void {
  if (size === 1) return;
  const scale = 1 / Math.sqrt(size);
  for (let block = 0; block < values.length; block += size) {
    for (let half = 1; half < size; half *= 2) {
      for (let start = block; start < block + size; start += half * 2) {
        for (let at = start; at < start + half; at++) {
          const a = values[at]!;
          const b = values[at + half]!;
          values[at] = a + b;
          values[at + half] = a - b;
        }
      }
    }
    for (let at = block; at < block + size; at++) values[at]! *= scale;
  }
}

function decodeRows(rows: Uint8Array<ArrayBuffer>, type: ElementType, out: Float32Array): void {
  if (type === 'f32') out.set(new Float32Array(rows.buffer));
  else if (type === 'f16') decodeF16(new Uint16Array(rows.buffer), out);
  else if (type === 'bf16') decodeBf16(new Uint16Array(rows.buffer), out);
  else decodeQ8(rows, out);
}

function encodeRows(values: Float32Array, type: ElementType, out: Uint8Array<ArrayBuffer>): void {
  if (type === 'f32') new Float32Array(out.buffer).set(values);
  else if (type === 'f16') encodeF16(values, new Uint16Array(out.buffer));
  else if (type === 'bf16') encodeBf16(values, new Uint16Array(out.buffer));
  else encodeQ8(values, out);
}

/** q8_0: per 32 values an f16 scale, then 32 signed bytes. */
function decodeQ8(rows: Uint8Array, out: Float32Array): void {
  invariant((rows.length / BLOCK_BYTES) * BLOCK_VALUES === out.length, 'rows are whole blocks');
  for (let at = 0, value = 0; at < rows.length; at += BLOCK_BYTES) {
    const scale = f16ToF32(rows[at]! | (rows[at + 1]! << 8));
    for (let i = 0; i < BLOCK_VALUES; i++, value++) out[value] = scale * ((rows[at + 2 + i]! << 24) >> 24);
  }
}

/** As ggml quantises: scale = largest magnitude / 127, codes rounded half away from zero with the unrounded scale. */
function encodeQ8(values: Float32Array, out: Uint8Array): void {
  const f = Math.fround;
  for (let at = 0, value = 0; at < out.length; at += BLOCK_BYTES, value += BLOCK_VALUES) {
    let largest = 0;
    for (let i = 0; i < BLOCK_VALUES; i++) largest = Math.max(largest, Math.abs(values[value + i]!));
    const scale = f(largest / 127);
    const inverse = scale === 0 ? 0 : f(1 / scale);
    const half = f32ToF16(scale);
    out[at] = half & 0xff;
    out[at + 1] = half >> 8;
    for (let i = 0; i < BLOCK_VALUES; i++) {
      const x = f(values[value + i]! * inverse);
      out[at + 2 + i] = Math.trunc(x + (x < 0 ? -0.5 : 0.5));
    }
  }
}
