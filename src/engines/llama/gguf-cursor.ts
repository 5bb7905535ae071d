// Primitive reads of a GGUF header: numbers, strings, typed values, each checked against the bytes at hand.
// Does not know the order of a header's parts.

import { KvtcError } from '../../base/errors.ts';

/** An array value. Long arrays (vocabularies) are stepped over and keep only their type and count. */
export interface GgufArray {
  readonly elementType: string;
  readonly count: number;
  readonly values: readonly (string | number | boolean)[] | null;
}

/** Integers beyond 2^53 are refused: no key this library knows comes near. */
export type GgufValue = string | number | boolean | GgufArray;

/** Longest array whose values are kept. */
const KEPT_VALUES = 4096;
const MAX_STRING_BYTES = 64 << 20;

const SCALARS: ReadonlyMap<number, readonly [name: string, bytes: number]> = new Map([
  [0, ['u8', 1]],
  [1, ['i8', 1]],
  [2, ['u16', 2]],
  [3, ['i16', 2]],
  [4, ['u32', 4]],
  [5, ['i32', 4]],
  [6, ['f32', 4]],
  [7, ['bool', 1]],
  [10, ['u64', 8]],
  [11, ['i64', 8]],
  [12, ['f64', 8]],
]);
const STRING = 8;
const ARRAY = 9;

/** Reads forward through the first bytes of a file; `byteLength` is the whole file's. */
export class GgufCursor {
  offset = 0;
  /** True once a read wanted more bytes than are at hand. */
  ranOut = false;
  readonly bytes: Uint8Array;
  readonly byteLength: number;
  readonly #view: DataView;

  constructor(bytes: Uint8Array, byteLength: number) {
    this.bytes = bytes;
    this.byteLength = byteLength;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  skip(what: string, lengthBytes: number): number {
    const at = this.offset;
    if (at + lengthBytes > this.bytes.length) {
      // Only bytes that the file has are worth reading more for.
      this.ranOut = at + lengthBytes <= this.byteLength;
      throw malformed(`ends within its ${what}: ${lengthBytes} bytes needed, ${this.byteLength - at} left`, at);
    }
    this.offset += lengthBytes;
    return at;
  }

  u32(what: string): number {
    return this.#view.getUint32(this.skip(what, 4), true);
  }

  /** A u64 of at most `limit`. */
  count(what: string, limit: number): number {
    const at = this.skip(what, 8);
    const value = this.#view.getBigUint64(at, true);
    if (value > BigInt(limit)) throw malformed(`has ${what} ${value}; at most ${limit} is taken`, at);
    return Number(value);
  }

  string(what: string, limitBytes: number): string {
    const lengthBytes = this.count(`${what} length`, limitBytes);
    const at = this.skip(what, lengthBytes);
    return new TextDecoder().decode(this.bytes.subarray(at, at + lengthBytes));
  }

  value(key: string): GgufValue {
    const at = this.offset;
    const type = this.u32('value type');
    if (type === STRING) return this.string(key, MAX_STRING_BYTES);
    if (type !== ARRAY) return this.#scalar(type, key, at);
    const elementType = this.u32('element type');
    const count = this.count('array length', this.byteLength);
    if (elementType === STRING) return { elementType: 'string', count, values: this.#strings(key, count) };
    const scalar = SCALARS.get(elementType);
    if (scalar === undefined) throw malformed(`has an array of type ${elementType} in ${key}`, at);
    const [name, bytes] = scalar;
    if (count > KEPT_VALUES) {
      this.skip(key, count * bytes);
      return { elementType: name, count, values: null };
    }
    return {
      elementType: name,
      count,
      values: Array.from({ length: count }, () => this.#scalar(elementType, key, at)),
    };
  }

  #strings(key: string, count: number): string[] | null {
    if (count <= KEPT_VALUES) return Array.from({ length: count }, () => this.string(key, MAX_STRING_BYTES));
    for (let i = 0; i < count; i++) this.skip(key, this.count('string length', MAX_STRING_BYTES));
    return null;
  }

  #scalar(type: number, key: string, at: number): number | boolean {
    const scalar = SCALARS.get(type);
    if (scalar === undefined) throw malformed(`has a value of type ${type} in ${key}`, at);
    const [name, bytes] = scalar;
    const offset = this.skip(key, bytes);
    const view = this.#view;
    switch (name) {
      case 'u8':
        return view.getUint8(offset);
      case 'i8':
        return view.getInt8(offset);
      case 'u16':
        return view.getUint16(offset, true);
      case 'i16':
        return view.getInt16(offset, true);
      case 'u32':
        return view.getUint32(offset, true);
      case 'i32':
        return view.getInt32(offset, true);
      case 'f32':
        return view.getFloat32(offset, true);
      case 'f64':
        return view.getFloat64(offset, true);
      case 'bool': {
        const flag = view.getUint8(offset);
        if (flag > 1) throw malformed(`has a truth value ${flag} in ${key}`, offset);
        return flag === 1;
      }
      default: {
        const wide = name === 'u64' ? view.getBigUint64(offset, true) : view.getBigInt64(offset, true);
        if (wide > Number.MAX_SAFE_INTEGER || wide < Number.MIN_SAFE_INTEGER) {
          throw malformed(`has ${wide} in ${key}, beyond 2^53`, offset);
        }
        return Number(wide);
      }
    }
  }
}

export function malformed(what: string, offsetBytes: number): KvtcError {
  return new KvtcError('KVTC_GGUF_MALFORMED', `the model file ${what} (byte ${offsetBytes})`, { offsetBytes });
}
