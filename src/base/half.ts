// Exact conversions between f32 and the 16-bit floats f16 (IEEE binary16) and bf16, element by element and for arrays.
// Rounding is to nearest, ties to even; NaN stays NaN (quiet), infinities and signed zeros are kept.
// Does not know what the values mean.

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

/** Every f16 value as f32, by its 16 bits: a 256 KiB table is several times faster than bit work. */
const F16_VALUES = ((): Float32Array => {
  const table = new Float32Array(65_536);
  for (let half = 0; half < 65_536; half++) {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const mantissa = half & 0x3ff;
    if (exponent === 0x1f) table[half] = mantissa === 0 ? sign * Infinity : NaN;
    else if (exponent === 0) table[half] = sign * mantissa * 2 ** -24;
    else table[half] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  }
  return table;
})();

/** f16 bits → value. */
export function f16ToF32(half: number): number {
  return F16_VALUES[half & 0xffff] as number;
}

/** Value (rounded to f32 first) → f16 bits; beyond ±65 504 by half a step or more gives ±Inf. */
export function f32ToF16(value: number): number {
  f32[0] = value;
  return f16Bits(bits[0] as number);
}

/** bf16 bits → value. */
export function bf16ToF32(half: number): number {
  bits[0] = (half & 0xffff) << 16;
  return f32[0] as number;
}

/** Value (rounded to f32 first) → bf16 bits. */
export function f32ToBf16(value: number): number {
  f32[0] = value;
  return bf16Bits(bits[0] as number);
}

/** Fills `out` with the f32 values of `halves` (f16 bits); lengths must match. */
export function decodeF16(halves: Uint16Array, out: Float32Array): void {
  for (let i = 0; i < halves.length; i++) out[i] = F16_VALUES[halves[i]!]!;
}

/** Fills `out` with the f16 bits of `values`; lengths must match. */
export function encodeF16(values: Float32Array, out: Uint16Array): void {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) out[i] = f16Bits(words[i]!);
}

/** Fills `out` with the f32 values of `halves` (bf16 bits); lengths must match. */
export function decodeBf16(halves: Uint16Array, out: Float32Array): void {
  const words = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
}

/** Fills `out` with the bf16 bits of `values`; lengths must match. */
export function encodeBf16(values: Float32Array, out: Uint16Array): void {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) out[i] = bf16Bits(words[i]!);
}

function bf16Bits(word: number): number {
  if ((word & 0x7fffffff) > 0x7f800000) return (word >>> 16) | 0x40; // NaN: keep the sign, force a mantissa bit
  return (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
}

function f16Bits(word: number): number {
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00; // 65 536 and above
  if (magnitude >= 0x38800000) {
    // Normal: rebias the exponent by −112 and round off 13 mantissa bits. A carry moves into the exponent, up to Inf.
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  if (magnitude <= 0x33000000) return sign; // at most 2^-25, which ties to even 0
  const shift = 126 - (magnitude >>> 23); // 14 at 2^-15 … 24 at 2^-25
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const kept = mantissa >>> shift;
  const dropped = mantissa & ((1 << shift) - 1);
  const halfway = 1 << (shift - 1);
  return sign | (kept + (dropped > halfway || (dropped === halfway && (kept & 1) === 1) ? 1 : 0));
}
