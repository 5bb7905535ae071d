// Rows in and out of llama.cpp sequence states, and states made anew: what the cache room works with.
// Rows are [layers][tokens][layer width] in the state's element type, tokens in ascending position, heads within a row
// in order. Does not know: engine handles (context.ts sets states), RoPE, what rows mean.

import { KvtcError, invariant } from '../../base/errors.ts';
import type { ElementType, LayerRange, StreamKind, TokenRange } from '../../base/geometry.ts';
import { elementBytes } from '../../base/geometry.ts';
import type { StateView } from './state-layout.ts';
import { BLOB_MAGIC, CELL_BYTES, FILE_MAGIC, FILE_VERSION, GGML_ELEMENT, parseState } from './state-layout.ts';

export { parseState } from './state-layout.ts';
export type { StateView } from './state-layout.ts';

/** Bytes of one token in one layer of the stream. */
export function rowBytesOf(view: StateView, stream: StreamKind): number {
  return stream === 'key' ? view.keyRowBytes : view.valueRowBytes;
}

/**
 * Where the rows of a range lie within the state's bytes, when they lie in order and evenly: the first layer's first row,
 * and how far each next layer is. Null where rows must be gathered: transposed values, cells out of order.
 */
export function placeRows(
  view: StateView,
  stream: StreamKind,
  layers: LayerRange,
  tokens: TokenRange,
): { readonly offsetBytes: number; readonly layerStrideBytes: number } | null {
  const offsets = (stream === 'key' ? view.keyOffsetsBytes : view.valueOffsetsBytes).slice(
    layers.startLayer,
    layers.endLayer,
  );
  const first = offsets[0] ?? 0;
  const layerStrideBytes = (offsets[1] ?? view.bytes.length) - first;
  const even = offsets.every((offset, layer) => offset === first + layer * layerStrideBytes);
  if (!even || view.cellOfToken !== null || (stream === 'value' && view.vTransposed)) return null;
  return { offsetBytes: first + tokens.startToken * rowBytesOf(view, stream), layerStrideBytes };
}

/**
 * Fills `out` with the rows of a range: [layers of the range][tokens of the range][row bytes], whatever the state's
 * cell order and value layout. `out` must have exactly that length. Ranges must lie within the state.
 */
export function gatherRows(
  view: StateView,
  stream: StreamKind,
  layers: LayerRange,
  tokens: TokenRange,
  out: Uint8Array,
): void {
  eachLayer(view, stream, layers, tokens, out, copyRows, readChannels);
}

/** The inverse of gatherRows: writes `rows` into the state's bytes. */
export function scatterRows(
  view: StateView,
  stream: StreamKind,
  layers: LayerRange,
  tokens: TokenRange,
  rows: Uint8Array,
): void {
  const place: RowMover = (state, rowBytes, first, count, cells, part) =>
    copyRows(part, rowBytes, first, count, cells, state, true);
  eachLayer(view, stream, layers, tokens, rows, place, writeChannels);
}

/** `state`: one layer's cells × rowBytes; `part`: the range's tokens × rowBytes. */
type RowMover = (
  state: Uint8Array,
  rowBytes: number,
  first: number,
  count: number,
  cells: Int32Array | null,
  part: Uint8Array,
) => void;
type ChannelMover = (
  state: Lanes,
  part: Lanes,
  cellCount: number,
  width: number,
  first: number,
  count: number,
  cells: Int32Array | null,
) => void;
type Lanes = Uint16Array | Uint32Array;

function eachLayer(
  view: StateView,
  stream: StreamKind,
  layers: LayerRange,
  tokens: TokenRange,
  rows: Uint8Array,
  moveRows: RowMover,
  moveChannels: ChannelMover,
): void {
  const { bytes, tokenCount, cellOfToken } = view;
  const rowBytes = rowBytesOf(view, stream);
  const first = tokens.startToken;
  const count = tokens.endToken - first;
  const layerCount = layers.endLayer - layers.startLayer;
  invariant(first >= 0 && count >= 0 && tokens.endToken <= tokenCount, 'token range lies in the state');
  invariant(
    layers.startLayer >= 0 && layerCount >= 0 && layers.endLayer <= view.layers,
    'layer range lies in the state',
  );
  invariant(rows.length === layerCount * count * rowBytes, 'rows have the length of their range');
  if (count === 0) return;
  const offsets = stream === 'key' ? view.keyOffsetsBytes : view.valueOffsetsBytes;
  const element = elementBytes(view.valueType, 1);
  for (let layer = 0; layer < layerCount; layer++) {
    const at = offsets[layers.startLayer + layer] as number;
    const state = bytes.subarray(at, at + tokenCount * rowBytes);
    const part = rows.subarray(layer * count * rowBytes, (layer + 1) * count * rowBytes);
    if (stream === 'value' && view.vTransposed) {
      // Odd addresses cannot be viewed as lanes; they come from odd widths only, so a copy of the layer is cheap enough.
      const stateLanes = lanes(state, element);
      const partLanes = lanes(part, element);
      moveChannels(stateLanes, partLanes, tokenCount, rowBytes / element, first, count, cellOfToken);
      if (moveChannels === writeChannels) storeIfCopied(stateLanes, state);
      else storeIfCopied(partLanes, part);
    } else {
      moveRows(state, rowBytes, first, count, cellOfToken, part);
    }
  }
}

/** Copies rows between cell order (`cells` of the state) and token order; `scatter` turns the direction round. */
function copyRows(
  from: Uint8Array,
  rowBytes: number,
  first: number,
  count: number,
  cells: Int32Array | null,
  to: Uint8Array,
  scatter = false,
): void {
  if (cells === null) {
    const at = first * rowBytes;
    if (scatter) to.set(from, at);
    else to.set(from.subarray(at, at + count * rowBytes));
    return;
  }
  for (let token = 0; token < count; token++) {
    const cell = (cells[first + token] as number) * rowBytes;
    const row = token * rowBytes;
    if (scatter) to.set(from.subarray(row, row + rowBytes), cell);
    else to.set(from.subarray(cell, cell + rowBytes), row);
  }
}

/** Channel-major state [width][cells] → rows [tokens][width]. A chunk's rows of one layer fit the cache. */
function readChannels(
  state: Lanes,
  part: Lanes,
  cellCount: number,
  width: number,
  first: number,
  count: number,
  cells: Int32Array | null,
): void {
  for (let channel = 0; channel < width; channel++) {
    const base = channel * cellCount;
    for (let token = 0, at = channel; token < count; token++, at += width) {
      part[at] = state[base + (cells === null ? first + token : cells[first + token]!)]!;
    }
  }
}

function writeChannels(
  state: Lanes,
  part: Lanes,
  cellCount: number,
  width: number,
  first: number,
  count: number,
  cells: Int32Array | null,
): void {
  for (let channel = 0; channel < width; channel++) {
    const base = channel * cellCount;
    for (let token = 0, at = channel; token < count; token++, at += width) {
      state[base + (cells === null ? first + token : cells[first + token]!)] = part[at]!;
    }
  }
}

function lanes(bytes: Uint8Array, elementSize: number): Lanes {
  const aligned = bytes.byteOffset % elementSize === 0 ? bytes : bytes.slice();
  const count = bytes.length / elementSize;
  return elementSize === 2
    ? new Uint16Array(aligned.buffer, aligned.byteOffset, count)
    : new Uint32Array(aligned.buffer, aligned.byteOffset, count);
}

function storeIfCopied(from: Lanes, bytes: Uint8Array): void {
  if (from.buffer !== bytes.buffer) bytes.set(new Uint8Array(from.buffer, from.byteOffset, from.byteLength));
}

export interface NewState {
  /** `blob` for llama_state_seq_set_data, `file` for llama_state_seq_load_file and node-llama-cpp. */
  readonly format: 'blob' | 'file';
  /** Token ids of a file, in order of position; null writes a file without ids, which only the C API loads. */
  readonly tokens?: Int32Array | null | undefined;
  /** i32, ascending, not negative: one cell per token. */
  readonly positions: Int32Array;
  readonly layers: number;
  readonly keyType: ElementType;
  readonly valueType: ElementType;
  /** Values of one token in one layer: kvHeads · headDim. */
  readonly keyWidth: number;
  readonly valueWidth: number;
  /** Values channel-major, as contexts without flash attention hold them. */
  readonly vTransposed: boolean;
  /** Streams of the target context (1 unless it has several sequences that are not unified); cells go to the first. */
  readonly streams?: number | undefined;
}

/**
 * Allocates the bytes of a state and writes everything but the rows, which are zero until scatterRows fills them.
 * Throws KVTC_STATE_UNSUPPORTED for transposed q8_0 values and for no tokens, KVTC_STATE_MISMATCH when ids and positions differ in
 * number or positions do not ascend.
 */
export function createState(spec: NewState): { state: Uint8Array<ArrayBuffer>; view: StateView } {
  const { positions, layers, keyType, valueType, vTransposed } = spec;
  const streams = spec.streams ?? 1;
  const tokens = spec.format === 'file' ? (spec.tokens ?? null) : null;
  checkNewState(spec, tokens);
  const cells = positions.length;
  const keyRowBytes = elementBytes(keyType, spec.keyWidth);
  const valueRowBytes = elementBytes(valueType, spec.valueWidth);
  const headBytes = spec.format === 'file' ? 12 + (tokens?.length ?? 0) * 4 : 8;
  const memoryBytes = 4 + 4 * streams + cells * CELL_BYTES + 8 + layers * (24 + cells * (keyRowBytes + valueRowBytes));
  const state = new Uint8Array(headBytes + memoryBytes);
  const out = new DataView(state.buffer);
  let at = 0;
  const u32 = (value: number): void => {
    out.setUint32(at, value, true);
    at += 4;
  };
  if (spec.format === 'blob') [BLOB_MAGIC, 0].forEach(u32);
  else [FILE_MAGIC, FILE_VERSION, tokens?.length ?? 0, ...(tokens ?? [])].forEach(u32);
  u32(streams);
  u32(cells);
  for (const position of positions) [position, 1, 0].forEach(u32);
  u32(vTransposed ? 1 : 0);
  u32(layers);
  for (let layer = 0; layer < layers; layer++) {
    [typeCode(keyType), keyRowBytes, 0].forEach(u32);
    at += cells * keyRowBytes;
  }
  for (let layer = 0; layer < layers; layer++) {
    u32(typeCode(valueType));
    if (vTransposed) [elementBytes(valueType, 1), spec.valueWidth].forEach(u32);
    else [valueRowBytes, 0].forEach(u32);
    at += cells * valueRowBytes;
  }
  // The other streams' cell counts are zero, as allocated.
  return { state, view: parseState(state) };
}

function checkNewState(spec: NewState, tokens: Int32Array | null): void {
  const { positions } = spec;
  if (positions.length === 0) throw new KvtcError('KVTC_STATE_UNSUPPORTED', 'a state needs at least one token');
  if (spec.vTransposed && spec.valueType === 'q8_0') {
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', 'q8_0 values cannot be transposed; the target needs flash attention');
  }
  if (tokens !== null && tokens.length !== positions.length) {
    throw new KvtcError('KVTC_STATE_MISMATCH', `${tokens.length} token ids for ${positions.length} positions`, {
      gotTokens: tokens.length,
      expectedTokens: positions.length,
    });
  }
  for (let i = 0; i < positions.length; i++) {
    const position = positions[i] as number;
    if (position < 0 || (i > 0 && position <= (positions[i - 1] as number))) {
      throw new KvtcError('KVTC_STATE_MISMATCH', `position ${position} of token ${i} does not ascend from 0`, {
        token: i,
        position,
      });
    }
  }
}

function typeCode(type: ElementType): number {
  for (const [code, name] of GGML_ELEMENT) if (name === type) return code;
  throw new Error(`no ggml type for ${type}`);
}

/**
 * Turns a blob into a state file or the other way round; the cells and rows are copied unchanged. A file takes
 * `tokens` (or those of the file it came from). Errors as parseState and createState.
 */
export function convertState(
  bytes: Uint8Array,
  format: 'blob' | 'file',
  tokens?: Int32Array | null,
): Uint8Array<ArrayBuffer> {
  const view = parseState(bytes);
  const ids = format === 'file' ? (tokens ?? view.tokens ?? new Int32Array(0)) : new Int32Array(0);
  if (ids.length !== 0 && ids.length !== view.tokenCount) {
    throw new KvtcError('KVTC_STATE_MISMATCH', `${ids.length} token ids for a state of ${view.tokenCount} tokens`, {
      gotTokens: ids.length,
      expectedTokens: view.tokenCount,
    });
  }
  const head = format === 'blob' ? [BLOB_MAGIC, 0] : [FILE_MAGIC, FILE_VERSION, ids.length, ...ids];
  const memory = bytes.subarray(view.memoryOffsetBytes);
  const out = new Uint8Array(head.length * 4 + memory.length);
  const words = new DataView(out.buffer);
  head.forEach((word, i) => words.setUint32(i * 4, word, true));
  out.set(memory, head.length * 4);
  return out;
}
