// Other people's cache quantisers on rows as engines hold them (keys rotated): what they change, and what they would
// store. Each works on one layer of one stream in place. Does not know: engine states, models, how damage is measured.

import { KvtcError } from '../../base/errors.ts';
import { f16ToF32, f32ToF16 } from '../../base/half.ts';
import type { StreamKind } from '../../base/geometry.ts';

/** Values per scale of llama.cpp's block types, and KIVI's group size. */
const GROUP = 32;
/** Newest tokens KIVI leaves in full precision. */
const KIVI_RESIDUAL = 128;
/** Largest E4M3 value. */
const FP8_LIMIT = 448;

/** One layer of one stream: `rows` f32[tokens, heads · headDim], changed in place. */
export interface LayerRows {
  readonly stream: StreamKind;
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly rows: Float32Array;
}

export interface RowCodec {
  readonly label: string;
  /** Newest tokens kept as they are, left out of the paper's ratio. */
  readonly window: number;
  /** Replaces the rows by what the codec would give back; returns the bits it would store for them, window excluded. */
  apply(layer: LayerRows): number;
}

/** llama.cpp's q8_0: 32 values share an f16 scale, symmetric. */
export const q8_0: RowCodec = {
  label: 'q8_0 on rows',
  window: 0,
  apply: (layer) =>
    eachBlock(layer, 8 * GROUP + 16, (rows, start) => {
      const step = half(largest(rows, start) / 127);
      const inverse = step === 0 ? 0 : 1 / step;
      for (let i = start; i < start + GROUP; i++) rows[i] = Math.round(rows[i]! * inverse) * step;
    }),
};

/** llama.cpp's q4_0: 32 values share an f16 scale; the value of largest magnitude becomes code −8. */
export const q4_0: RowCodec = {
  label: 'q4_0 on rows',
  window: 0,
  apply: (layer) =>
    eachBlock(layer, 4 * GROUP + 16, (rows, start) => {
      const step = half(signedLargest(rows, start) / -8);
      const inverse = step === 0 ? 0 : 1 / step;
      for (let i = start; i < start + GROUP; i++) {
        rows[i] = (clamp(Math.floor(rows[i]! * inverse + 8.5), 15) - 8) * step;
      }
    }),
};

/** llama.cpp's q4_1: 32 values share an f16 scale and an f16 minimum. */
export const q4_1: RowCodec = {
  label: 'q4_1 on rows',
  window: 0,
  apply: (layer) =>
    eachBlock(layer, 4 * GROUP + 32, (rows, start) => {
      quantiseRun(rows, start, 1, GROUP, 15);
    }),
};

/** FP8 E4M3 with one static scale per layer and KV head, as vLLM's fp8 cache; the scales themselves are not counted. */
export const fp8PerHead: RowCodec = {
  label: 'fp8 per head',
  window: 0,
  apply: ({ rows, tokens, heads, headDim }) => {
    const width = heads * headDim;
    for (let head = 0; head < heads; head++) {
      let most = 0;
      for (let token = 0; token < tokens; token++) {
        const start = token * width + head * headDim;
        for (let i = start; i < start + headDim; i++) most = Math.max(most, Math.abs(rows[i]!));
      }
      if (most === 0) continue;
      const scale = most / FP8_LIMIT;
      for (let token = 0; token < tokens; token++) {
        const start = token * width + head * headDim;
        for (let i = start; i < start + headDim; i++) rows[i] = roundE4m3(rows[i]! / scale) * scale;
      }
    }
    return 8 * rows.length;
  },
};

/**
 * KIVI (arXiv 2402.02750): minimum and step in f16; keys per channel over 32 tokens, values per token over 32 channels;
 * the newest 128 tokens, and a remainder under 32, stay f16. `bits` 2 or 4.
 */
export function kivi(bits: 2 | 4): RowCodec {
  const levels = 2 ** bits - 1;
  return {
    label: `KIVI ${bits} bit`,
    window: KIVI_RESIDUAL,
    apply: (layer) => {
      const { stream, tokens, heads, headDim, rows } = layer;
      const width = checkedWidth(layer);
      const past = Math.max(0, tokens - KIVI_RESIDUAL);
      const coded = past - (past % GROUP);
      if (stream === 'key') {
        for (let token = 0; token < coded; token += GROUP) {
          for (let channel = 0; channel < heads * headDim; channel++) {
            quantiseRun(rows, token * width + channel, width, GROUP, levels);
          }
        }
      } else {
        for (let start = 0; start < coded * width; start += GROUP) quantiseRun(rows, start, 1, GROUP, levels);
      }
      return coded * width * (bits + 32 / GROUP) + (past - coded) * width * 16;
    },
  };
}

/** Min/max quantisation of `count` values `stride` apart, minimum and step rounded to f16. */
function quantiseRun(rows: Float32Array, start: number, stride: number, count: number, levels: number): void {
  const end = start + stride * count;
  let least = Infinity;
  let most = -Infinity;
  for (let i = start; i < end; i += stride) {
    const value = rows[i]!;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  const minimum = half(least);
  const step = half((most - minimum) / levels);
  const inverse = step > 0 ? 1 / step : 0;
  for (let i = start; i < end; i += stride) {
    rows[i] = minimum + clamp(Math.round((rows[i]! - minimum) * inverse), levels) * step;
  }
}

/** Nearest E4M3 value, ties to even, saturating at ±448. */
export function roundE4m3(value: number): number {
  const magnitude = Math.min(Math.abs(value), FP8_LIMIT);
  const exponent = magnitude < 2 ** -6 ? -6 : Math.floor(Math.log2(magnitude));
  const step = 2 ** (exponent - 3);
  const codes = magnitude / step;
  const down = Math.floor(codes);
  const rest = codes - down;
  const code = rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
  return Math.sign(value) * Math.min(code * step, FP8_LIMIT);
}

function eachBlock(layer: LayerRows, blockBits: number, quantise: (rows: Float32Array, start: number) => void): number {
  checkedWidth(layer);
  const { rows } = layer;
  for (let start = 0; start < rows.length; start += GROUP) quantise(rows, start);
  return (rows.length / GROUP) * blockBits;
}

function checkedWidth({ heads, headDim }: LayerRows): number {
  const width = heads * headDim;
  if (width % GROUP !== 0) {
    const message = `rows of ${width} values do not divide into blocks of ${GROUP}; this rival cannot code the model`;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { width, block: GROUP });
  }
  return width;
}

function largest(rows: Float32Array, start: number): number {
  return Math.abs(signedLargest(rows, start));
}

function signedLargest(rows: Float32Array, start: number): number {
  let found = 0;
  for (let i = start; i < start + GROUP; i++) if (Math.abs(rows[i]!) > Math.abs(found)) found = rows[i]!;
  return found;
}

function clamp(code: number, highest: number): number {
  return code < 0 ? 0 : code > highest ? highest : code;
}

function half(value: number): number {
  return f16ToF32(f32ToF16(value));
}
