// The published codec's arithmetic on single values: fp16 minimum and step of integer groups, E4M3 bytes of fp8 groups
// (readings R1-R3). All operations are f32 with one rounding each, so that every machine writes the same codes.
// Does not know: groups, plans, byte layout.

import { f16ToF32, f32ToF16 } from '../../base/half.ts';

/** Largest E4M3 magnitude; larger values saturate. */
export const E4M3_MAX = 448;

/** Below this a step counts as this when dividing; the stored step stays what it was (possibly 0). */
export const SMALLEST_DIVISOR = Math.fround(1e-12);

/** Adding and subtracting this rounds a double of magnitude < 2^51 to an integer, ties to even. */
export const ROUNDING_SHIFT = 6_755_399_441_055_744; // 1.5 · 2^52

const F16_INFINITY = 0x7c00;
const F16_MAX = 0x7bff;

/** E4M3 byte → value; the two NaN bytes 0x7f and 0xff give NaN, which valid chunks never hold. */
export const E4M3_VALUES = ((): Float32Array => {
  const table = new Float32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    const sign = byte & 0x80 ? -1 : 1;
    const exponent = (byte >> 3) & 15;
    const mantissa = byte & 7;
    if ((byte & 0x7f) === 0x7f) table[byte] = NaN;
    else if (exponent === 0) table[byte] = sign * mantissa * 2 ** -9;
    else table[byte] = sign * (1 + mantissa / 8) * 2 ** (exponent - 7);
  }
  return table;
})();

/** Value (finite) → f16 bits; beyond ±65 504 it saturates, so that no group's metadata is ever Inf. */
export function saturatingF16(value: number): number {
  const half = f32ToF16(value);
  return (half & 0x7fff) === F16_INFINITY ? (half & 0x8000) | F16_MAX : half;
}

/**
 * f16 bits of the step of an integer group: f16((max − min16) / levels), each operation rounded to f32 first.
 * `minHalf` are the bits of the group's stored minimum. The step may come out 0 (constant group), subnormal, or
 * slightly negative when the f16 minimum rounds up past the maximum; then every code is 0.
 */
export function stepHalf(max: number, minHalf: number, levels: number): number {
  return saturatingF16(Math.fround(Math.fround(max - f16ToF32(minHalf)) / levels));
}

/** Code of `x`: clamp(round-half-even((x − min) / divisor), 0, levels). `divisor` = max(step, SMALLEST_DIVISOR). */
export function integerCode(x: number, min: number, divisor: number, levels: number): number {
  const scaled = Math.fround(Math.fround(x - min) / divisor);
  const rounded = scaled + ROUNDING_SHIFT - ROUNDING_SHIFT;
  return rounded < 0 ? 0 : rounded > levels ? levels : rounded;
}

const f32 = new Float32Array(1);
const word = new Uint32Array(f32.buffer);

/**
 * Value (finite, already divided by 2^exponent) → E4M3 byte, to nearest, ties to even, saturating at ±448.
 * Everything that rounds to zero gives 0x00, whatever its sign.
 */
export function encodeE4m3(value: number): number {
  f32[0] = value;
  const bits = word[0] as number;
  const magnitude = bits & 0x7fffffff;
  const sign = (bits >>> 24) & 0x80;
  if (magnitude >= 0x43e00000) return sign | 0x7e; // 448 and above
  if (magnitude < 0x3c800000) {
    // Below 2^-6 the spacing is 2^-9; 8 of it carries into the first normal byte.
    const steps = Math.abs(value) * 512 + ROUNDING_SHIFT - ROUNDING_SHIFT;
    return steps === 0 ? 0 : sign | steps;
  }
  // Rebias the exponent from 127 to 7 and round off 20 mantissa bits; a carry moves into the exponent.
  return sign | ((magnitude - 0x3c000000 + 0x7ffff + ((magnitude >>> 20) & 1)) >>> 20);
}

/**
 * Static exponent of an fp8 group whose largest calibration magnitude is `largest`: the smallest power of two that
 * keeps 1.25 · largest within E4M3 (R3). f32 arithmetic; the caller clamps to EXPONENT_LIMIT.
 */
export function fp8Exponent(largest: number): number {
  const headroom = Math.max(Math.fround(largest * 1.25), 1e-20);
  return Math.ceil(Math.fround(Math.log2(Math.fround(headroom / E4M3_MAX))));
}
