// The published codec (paper §3.2-3.3, readings R1-R5) as a Codec: coefficients of a chunk ⇄ packed bytes.
// Byte layout: docs/format/paper-codec.md. Does not know: transforms, entropy coding, how a plan was found.

import { KvtcError, invariant } from '../../base/errors.ts';
import { f16ToF32 } from '../../base/half.ts';
import type { Codec } from '../codec.ts';
import type { GroupPlace } from './packing.ts';
import { placeGroups, tokenPackedBytes } from './packing.ts';
import type { PaperPlan } from './plan.ts';
import { E4M3_VALUES, SMALLEST_DIVISOR, encodeE4m3, integerCode, saturatingF16, stepHalf } from './quantise.ts';

/**
 * The codec named `kvtc-paper`. Deterministic: same coefficients, same bytes, on every machine. Coefficients beyond
 * what a group can hold saturate (integer groups near ±65 504, fp8 groups at 448 · 2^exponent); the quantisation error
 * then shows it, no code is ever Inf or NaN. Coefficients that belong to no group are dropped and decode to +0.
 */
export const paperCodec: Codec<PaperPlan> = {
  id: 'kvtc-paper',
  packedBytes: (tokenCount, plan) => tokenPackedBytes(plan) * tokenCount,
  encodeChunk,
  decodeChunk,
};

function encodeChunk(coefficients: Float32Array, tokenCount: number, plan: PaperPlan): Uint8Array {
  const rank = plan.rank;
  const used = tokenCount * rank;
  invariant(
    coefficients.length >= used,
    `${coefficients.length} coefficients for ${tokenCount} tokens of rank ${rank}`,
  );
  checkFinite(coefficients, used, rank);
  const packed = new Uint8Array(tokenPackedBytes(plan) * tokenCount);
  for (const place of placeGroups(plan, tokenCount)) {
    if (place.type === 'fp8') encodeFp8(coefficients, rank, tokenCount, place, packed);
    else encodeInteger(coefficients, rank, tokenCount, place, packed);
  }
  return packed;
}

function decodeChunk(packed: Uint8Array, tokenCount: number, plan: PaperPlan, out: Float32Array): void {
  const rank = plan.rank;
  invariant(out.length >= tokenCount * rank, `room for ${out.length} values, ${tokenCount} tokens of rank ${rank}`);
  const expectedBytes = tokenPackedBytes(plan) * tokenCount;
  if (packed.length !== expectedBytes) {
    throw new KvtcError(
      'KVTC_CHUNK_MALFORMED',
      `a packed chunk of ${tokenCount} tokens has ${packed.length} bytes, its plan makes ${expectedBytes}`,
      { gotBytes: packed.length, expectedBytes, tokenCount },
    );
  }
  out.fill(0, 0, tokenCount * rank);
  for (const place of placeGroups(plan, tokenCount)) {
    if (place.type === 'fp8') decodeFp8(packed, rank, tokenCount, place, out);
    else decodeInteger(packed, rank, tokenCount, place, out);
  }
}

function checkFinite(coefficients: Float32Array, used: number, rank: number): void {
  // x − x is 0 for finite x and NaN else, and NaN stays in the sum.
  let sum = 0;
  for (let i = 0; i < used; i++) sum += coefficients[i]! - coefficients[i]!;
  if (sum === 0) return;
  const index = coefficients.findIndex((value) => !Number.isFinite(value));
  const token = Math.floor(index / rank);
  throw new KvtcError(
    'KVTC_ROWS_NOT_FINITE',
    `coefficient ${index % rank} of the chunk's token ${token} is ${coefficients[index]}; rows must be finite`,
    { token, component: index % rank },
  );
}

function encodeFp8(x: Float32Array, rank: number, tokens: number, place: GroupPlace, packed: Uint8Array): void {
  const factor = 2 ** -place.exponent;
  for (let t = 0; t < tokens; t++) {
    let from = t * rank + place.start;
    let to = place.codeOffsetBytes + t;
    for (let c = 0; c < place.size; c++, to += tokens) packed[to] = encodeE4m3(x[from++]! * factor);
  }
}

function decodeFp8(packed: Uint8Array, rank: number, tokens: number, place: GroupPlace, out: Float32Array): void {
  const factor = 2 ** place.exponent;
  const values = E4M3_VALUES;
  let sum = 0;
  for (let t = 0; t < tokens; t++) {
    let from = place.codeOffsetBytes + t;
    let to = t * rank + place.start;
    for (let c = 0; c < place.size; c++, from += tokens) {
      const value = values[packed[from]!]! * factor;
      sum += value;
      out[to++] = value;
    }
  }
  if (Number.isNaN(sum)) malformedValue(place, 'an fp8 code is NaN');
}

function encodeInteger(x: Float32Array, rank: number, tokens: number, place: GroupPlace, packed: Uint8Array): void {
  const { start, size, tokenBytes } = place;
  const bits = place.type === 'int2' ? 2 : 4;
  const levels = (1 << bits) - 1;
  const wholeBytes = Math.floor((size * bits) / 8);
  let to = place.codeOffsetBytes;
  for (let t = 0; t < tokens; t++) {
    let from = t * rank + start;
    const end = from + size;
    let min = x[from]!;
    let max = min;
    for (let i = from + 1; i < end; i++) {
      const value = x[i]!;
      if (value < min) min = value;
      else if (value > max) max = value;
    }
    const minHalf = saturatingF16(min);
    const step = stepHalf(max, minHalf, levels);
    writeU16(packed, place.minOffsetBytes + 2 * t, minHalf);
    writeU16(packed, place.stepOffsetBytes + 2 * t, step);
    const base = f16ToF32(minHalf);
    const divisor = Math.max(f16ToF32(step), SMALLEST_DIVISOR);
    if (bits === 4) {
      for (let b = 0; b < wholeBytes; b++, from += 2) {
        packed[to + b] = integerCode(x[from]!, base, divisor, 15) | (integerCode(x[from + 1]!, base, divisor, 15) << 4);
      }
    } else {
      for (let b = 0; b < wholeBytes; b++, from += 4) {
        packed[to + b] =
          integerCode(x[from]!, base, divisor, 3) |
          (integerCode(x[from + 1]!, base, divisor, 3) << 2) |
          (integerCode(x[from + 2]!, base, divisor, 3) << 4) |
          (integerCode(x[from + 3]!, base, divisor, 3) << 6);
      }
    }
    for (let shift = 0; from < end; shift += bits) {
      packed[to + wholeBytes]! |= integerCode(x[from++]!, base, divisor, levels) << shift;
    }
    to += tokenBytes;
  }
}

function decodeInteger(packed: Uint8Array, rank: number, tokens: number, place: GroupPlace, out: Float32Array): void {
  const { start, size, tokenBytes } = place;
  const bits = place.type === 'int2' ? 2 : 4;
  const wholeBytes = Math.floor((size * bits) / 8);
  const tailBits = size * bits - wholeBytes * 8;
  let from = place.codeOffsetBytes;
  for (let t = 0; t < tokens; t++) {
    const min = f16ToF32(readU16(packed, place.minOffsetBytes + 2 * t));
    const step = f16ToF32(readU16(packed, place.stepOffsetBytes + 2 * t));
    // Inf − Inf and NaN − NaN are NaN: one test for both values.
    if (min - min + (step - step) !== 0) malformedValue(place, `token ${t}'s minimum or step is not finite`);
    let to = t * rank + start;
    // min + code · step is exact in f64, so the store rounds once, as f32 arithmetic does.
    if (bits === 4) {
      for (let b = 0; b < wholeBytes; b++, to += 2) {
        const byte = packed[from + b]!;
        out[to] = min + (byte & 15) * step;
        out[to + 1] = min + (byte >> 4) * step;
      }
    } else {
      for (let b = 0; b < wholeBytes; b++, to += 4) {
        const byte = packed[from + b]!;
        out[to] = min + (byte & 3) * step;
        out[to + 1] = min + ((byte >> 2) & 3) * step;
        out[to + 2] = min + ((byte >> 4) & 3) * step;
        out[to + 3] = min + (byte >> 6) * step;
      }
    }
    if (tailBits > 0) {
      const byte = packed[from + wholeBytes]!;
      if (byte >> tailBits !== 0) malformedValue(place, `token ${t}'s padding bits are not zero`);
      for (let shift = 0; shift < tailBits; shift += bits) {
        out[to++] = min + ((byte >> shift) & ((1 << bits) - 1)) * step;
      }
    }
    from += tokenBytes;
  }
}

function readU16(bytes: Uint8Array, offset: number): number {
  return bytes[offset]! | (bytes[offset + 1]! << 8);
}

function writeU16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value & 0xff;
  bytes[offset + 1] = value >> 8;
}

function malformedValue(place: GroupPlace, problem: string): never {
  throw new KvtcError('KVTC_CHUNK_MALFORMED', `${place.type} group at component ${place.start}: ${problem}`, {
    component: place.start,
    type: place.type,
  });
}
