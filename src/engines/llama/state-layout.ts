// Where things lie in the bytes of a llama.cpp sequence state: parsing, and writing the frame of a new state.
// All words little-endian, nothing padded. Source: our notes on the format, read in llama.cpp v0.4.0/v0.5.0
// (llama_kv_cache state_write, llama_context state_seq_save_file) and checked against both.
// Does not know: contexts, models, RoPE; rows are moved by state.ts.
//
//   file   : u32 "ggsq" | u32 version 2 or 3 | u32 words | i32 token[words] | MEMORY
//   blob   : u32 0xaf143cd8 | i32 sequence | MEMORY
//   MEMORY : u32 streams, then per stream: u32 cells, and where cells > 0:
//            cells × { i32 position | u32 1 | i32 sequence } | u32 vTransposed | u32 layers
//            layers × { i32 keyType | u64 rowBytes | cells × row }
//            layers × { i32 valueType | u64 rowBytes | cells × row }                            not transposed
//            layers × { i32 valueType | u32 elementBytes | u32 width | width × cells × element }  transposed

import { KvtcError } from '../../base/errors.ts';
import type { ElementType } from '../../base/geometry.ts';
import { elementBytes } from '../../base/geometry.ts';

export const FILE_MAGIC = 0x67677371;
export const BLOB_MAGIC = 0xaf143cd8;
/** Version the checked engine releases write and load; 2 has the same bytes for plain models. */
export const FILE_VERSION = 3;
export const CELL_BYTES = 12;
/** Bounds on what a state may claim, far above any model; they keep a hostile file from costing work. */
const LIMITS = { streams: 4096, layers: 4096, rowBytes: 1 << 24 } as const;

/** Element types by ggml's type numbers. Other cache types exist in the engine and are refused by name. */
export const GGML_ELEMENT: ReadonlyMap<number, ElementType> = new Map([
  [0, 'f32'],
  [1, 'f16'],
  [8, 'q8_0'],
  [30, 'bf16'],
]);
/** Cache types the engine has and this build does not read. */
export const OTHER_TYPES: ReadonlyMap<number, string> = new Map([
  [2, 'q4_0'],
  [3, 'q4_1'],
  [6, 'q5_0'],
  [7, 'q5_1'],
  [20, 'iq4_nl'],
]);

/** A parsed state. `bytes` is the caller's buffer, not a copy. Token t is the t-th in ascending position. */
export interface StateView {
  readonly kind: 'blob' | 'file';
  readonly bytes: Uint8Array;
  /** Of the file format; null for a blob, which has none. */
  readonly version: number | null;
  /** Token ids of a file that holds them, else null. */
  readonly tokens: Int32Array | null;
  readonly tokenCount: number;
  /** i32[tokenCount], ascending. */
  readonly positions: Int32Array;
  readonly layers: number;
  readonly keyType: ElementType;
  readonly valueType: ElementType;
  /** Bytes of one token in one layer. */
  readonly keyRowBytes: number;
  readonly valueRowBytes: number;
  readonly vTransposed: boolean;
  /** Streams of the context the state came from; one of them, at most, holds cells. */
  readonly streams: number;
  /** Where MEMORY begins; it runs to the end of `bytes`. */
  readonly memoryOffsetBytes: number;
  /** Where each layer's keys (values) begin. */
  readonly keyOffsetsBytes: readonly number[];
  readonly valueOffsetsBytes: readonly number[];
  /** Cell of each token, or null where cells are in token order. */
  readonly cellOfToken: Int32Array | null;
}

/**
 * Reads the layout of a sequence state, blob or file, and checks every length against the bytes.
 * Throws KVTC_STATE_MALFORMED for bytes that are no state, KVTC_STATE_UNSUPPORTED for layouts and types that are known
 * but not handled (sliding window, recurrent parts, other quantised types, images in a server's file).
 */
export function parseState(bytes: Uint8Array): StateView {
  const words = new StateWords(bytes);
  const magic = words.u32('magic');
  if (magic === BLOB_MAGIC) {
    words.i32('sequence');
    return { kind: 'blob', bytes, version: null, tokens: null, ...parseMemory(words) };
  }
  if (magic !== FILE_MAGIC) {
    throw malformed(`begins with ${hex(magic)}; a state begins with ${hex(BLOB_MAGIC)} or ${hex(FILE_MAGIC)}`, 0);
  }
  const version = words.u32('version');
  if (version !== 2 && version !== 3) {
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', `the state file has version ${version}; versions 2 and 3 are read`, {
      got: version,
    });
  }
  const tokens = parseTokens(words);
  const memory = parseMemory(words);
  if (tokens.length !== 0 && tokens.length !== memory.tokenCount) {
    throw malformed(`holds ${tokens.length} token ids for ${memory.tokenCount} cells`, 8);
  }
  return { kind: 'file', bytes, version, tokens: tokens.length === 0 ? null : tokens, ...memory };
}

/** Plain token list, or llama-server's record: −1, 1, count, tokens…, number of media parts. */
function parseTokens(words: StateWords): Int32Array {
  const count = words.u32('token count');
  const field = words.i32Array('token ids', count);
  if (count === 0 || field[0] !== -1) {
    if (field.some((token) => token < 0)) throw malformed('holds a negative token id', 12);
    return field;
  }
  if (count < 4) throw malformed('has a token record shorter than its head', 12);
  if (field[1] !== 1) {
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', `the server's token record has version ${field[1]}; 1 is read`);
  }
  const tokenCount = (field[2] as number) >>> 0;
  if (tokenCount > count - 4) throw malformed('has a token record longer than its field', 12);
  const media = field[3 + tokenCount];
  const tokens = field.subarray(3, 3 + tokenCount);
  if (media !== 0 || tokens.some((token) => token < 0)) {
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', "the server's state file holds images or sound, not only text");
  }
  if (tokenCount !== count - 4) throw malformed('has words after its token record', 12);
  return tokens;
}

type Memory = Omit<StateView, 'kind' | 'bytes' | 'version' | 'tokens'>;

function parseMemory(words: StateWords): Memory {
  const memoryOffsetBytes = words.offset;
  const memory = parseStreams(words);
  if (words.remaining > 0) refuseTail(words, memory.streams);
  return { memoryOffsetBytes, ...memory };
}

function parseStreams(words: StateWords): Omit<Memory, 'memoryOffsetBytes'> {
  const at = words.offset;
  const streams = words.u32('stream count');
  if (streams < 1 || streams > LIMITS.streams) throw malformed(`claims ${streams} streams`, at);
  let filled: Omit<Memory, 'memoryOffsetBytes' | 'streams'> | undefined;
  for (let stream = 0; stream < streams; stream++) {
    const cellsAt = words.offset;
    const cells = words.u32('cell count');
    if (cells === 0) continue;
    if (filled !== undefined)
      throw malformed('holds cells of more than one stream, so it is not one sequence', cellsAt);
    filled = parseStream(words, cells);
  }
  return { streams, ...(filled ?? EMPTY) };
}

const EMPTY = {
  tokenCount: 0,
  positions: new Int32Array(0),
  layers: 0,
  keyType: 'f16',
  valueType: 'f16',
  keyRowBytes: 0,
  valueRowBytes: 0,
  vTransposed: false,
  keyOffsetsBytes: [],
  valueOffsetsBytes: [],
  cellOfToken: null,
} as const;

function parseStream(words: StateWords, cells: number): Omit<Memory, 'memoryOffsetBytes' | 'streams'> {
  words.require('cells', cells * CELL_BYTES);
  const cellPositions = new Int32Array(cells);
  for (let cell = 0; cell < cells; cell++) {
    const at = words.offset;
    const position = words.i32('position');
    if (position < 0) throw malformed(`has position ${position} in cell ${cell}`, at);
    cellPositions[cell] = position;
    const sequences = words.u32('sequence count');
    if (sequences !== 1) {
      throw malformed(`has ${sequences} sequences in cell ${cell}; expected 1 (M-RoPE caches look like this too)`, at);
    }
    words.i32('sequence');
  }
  const order = tokenOrder(cellPositions);
  const transposedAt = words.offset;
  const vTransposed = words.u32('value layout');
  if (vTransposed > 1) throw malformed(`has value layout ${vTransposed}; expected 0 or 1`, transposedAt);
  const layersAt = words.offset;
  const layers = words.u32('layer count');
  if (layers < 1 || layers > LIMITS.layers) throw malformed(`claims ${layers} layers`, layersAt);
  const key = parseLayers(words, 'key', layers, cells, false);
  const value = parseLayers(words, 'value', layers, cells, vTransposed === 1);
  return {
    tokenCount: cells,
    ...order,
    layers,
    keyType: key.type,
    valueType: value.type,
    keyRowBytes: key.rowBytes,
    valueRowBytes: value.rowBytes,
    vTransposed: vTransposed === 1,
    keyOffsetsBytes: key.offsets,
    valueOffsetsBytes: value.offsets,
  };
}

/** Positions sorted, and each token's cell where that is not the same order. */
function tokenOrder(cellPositions: Int32Array): Pick<Memory, 'positions' | 'cellOfToken'> {
  let ascending = true;
  for (let i = 1; i < cellPositions.length; i++) ascending &&= cellPositions[i]! > cellPositions[i - 1]!;
  if (ascending) return { positions: cellPositions, cellOfToken: null };
  const cellOfToken = Int32Array.from(cellPositions.keys()).sort((a, b) => cellPositions[a]! - cellPositions[b]!);
  const positions = cellOfToken.map((cell) => cellPositions[cell]!);
  for (let i = 1; i < positions.length; i++) {
    if (positions[i] === positions[i - 1]) {
      throw new KvtcError('KVTC_STATE_UNSUPPORTED', `two cells of the state have position ${positions[i]}`);
    }
  }
  return { positions, cellOfToken };
}

function parseLayers(
  words: StateWords,
  stream: 'key' | 'value',
  layers: number,
  cells: number,
  transposed: boolean,
): { type: ElementType; rowBytes: number; offsets: number[] } {
  const offsets: number[] = [];
  let first: { type: ElementType; rowBytes: number } | undefined;
  for (let layer = 0; layer < layers; layer++) {
    const at = words.offset;
    const type = elementType(words.i32('element type'), stream, layer, at);
    const rowBytes = transposed ? transposedRowBytes(words, type, layer) : words.u64('row bytes');
    const blockBytes = elementBytes(type, type === 'q8_0' ? 32 : 1);
    if (rowBytes === 0 || rowBytes > LIMITS.rowBytes || rowBytes % blockBytes !== 0) {
      throw malformed(`claims ${stream} rows of ${rowBytes} bytes of ${type} in layer ${layer}`, at);
    }
    first ??= { type, rowBytes };
    if (type !== first.type || rowBytes !== first.rowBytes) {
      throw new KvtcError(
        'KVTC_STATE_UNSUPPORTED',
        `layer ${layer} of the state has ${stream} rows of ${rowBytes} bytes of ${type}, layer 0 has ` +
          `${first.rowBytes} bytes of ${first.type}; layers that differ are not handled`,
        { layer, rowBytes, expectedBytes: first.rowBytes },
      );
    }
    offsets.push(words.skip(`${stream} rows of layer ${layer}`, cells * rowBytes));
  }
  if (first === undefined) throw malformed('holds no layers', words.offset);
  return { ...first, offsets };
}

function transposedRowBytes(words: StateWords, type: ElementType, layer: number): number {
  const at = words.offset;
  const element = words.u32('element bytes');
  const width = words.u32('value width');
  if (type === 'q8_0' || element !== elementBytes(type, 1)) {
    throw malformed(`claims transposed values of ${element} bytes of ${type} in layer ${layer}`, at);
  }
  return element * width;
}

function elementType(code: number, stream: string, layer: number, at: number): ElementType {
  const type = GGML_ELEMENT.get(code);
  if (type !== undefined) return type;
  const name = OTHER_TYPES.get(code);
  if (name === undefined) throw malformed(`has ${stream} type ${code} in layer ${layer}`, at);
  throw new KvtcError(
    'KVTC_STATE_UNSUPPORTED',
    `the state's ${stream} rows are ${name}; f32, f16, bf16 and q8_0 are read. Run the context with an f16 cache`,
    { type: name },
  );
}

/** Bytes after the memory: name what they look like. */
function refuseTail(words: StateWords, streams: number): never {
  const at = words.offset;
  const tail = words.remaining;
  if (tail >= 4 && words.peekU32() === streams && succeeds(() => parseStreams(words)) && words.remaining === 0) {
    throw unsupported('a second cache for layers with a sliding window');
  }
  words.offset = at;
  // A recurrent part: cell count, cells of { position, 0 }, then a zero word and the layer count.
  const cells = words.u32OrZero(0);
  if (cells >= 1 && tail >= 4 + cells * 8 + 8 && words.u32OrZero(8) === 0 && words.u32OrZero(4 + cells * 8) === 0) {
    throw unsupported('a recurrent part');
  }
  throw malformed(`has ${tail} bytes after its end`, at);
}

function succeeds(run: () => unknown): boolean {
  try {
    run();
    return true;
  } catch {
    return false;
  }
}

/** A cursor over the state whose every read is checked against the end. */
class StateWords {
  offset = 0;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remaining(): number {
    return this.#view.byteLength - this.offset;
  }

  require(what: string, neededBytes: number): void {
    if (neededBytes > this.remaining) {
      throw new KvtcError(
        'KVTC_STATE_MALFORMED',
        `the state ends within its ${what}: ${neededBytes} bytes needed at byte ${this.offset}, ${this.remaining} left`,
        { what, offsetBytes: this.offset, neededBytes, availableBytes: this.remaining },
      );
    }
  }

  /** Steps over `lengthBytes` and returns where they begin. */
  skip(what: string, lengthBytes: number): number {
    this.require(what, lengthBytes);
    const at = this.offset;
    this.offset += lengthBytes;
    return at;
  }

  u32(what: string): number {
    return this.#view.getUint32(this.skip(what, 4), true);
  }

  i32(what: string): number {
    return this.#view.getInt32(this.skip(what, 4), true);
  }

  /** Values beyond 2^53 come back rounded: still far above every limit they are compared with. */
  u64(what: string): number {
    return Number(this.#view.getBigUint64(this.skip(what, 8), true));
  }

  i32Array(what: string, count: number): Int32Array {
    const at = this.skip(what, count * 4);
    return Int32Array.from({ length: count }, (_, i) => this.#view.getInt32(at + i * 4, true));
  }

  peekU32(): number {
    return this.u32OrZero(0);
  }

  /** The word `aheadBytes` after the cursor, 0 when it lies past the end. */
  u32OrZero(aheadBytes: number): number {
    return aheadBytes + 4 <= this.remaining ? this.#view.getUint32(this.offset + aheadBytes, true) : 0;
  }
}

function unsupported(what: string): KvtcError {
  return new KvtcError('KVTC_STATE_UNSUPPORTED', `the state holds ${what}; only plain attention caches are handled`);
}

function malformed(what: string, offsetBytes: number): KvtcError {
  return new KvtcError('KVTC_STATE_MALFORMED', `the state ${what} (byte ${offsetBytes})`, { offsetBytes });
}

function hex(word: number): string {
  return `0x${word.toString(16).padStart(8, '0')}`;
}
