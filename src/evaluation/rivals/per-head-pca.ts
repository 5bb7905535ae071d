// The codec of the public KVTC clones as a rival: a PCA per layer and KV head, whole bits per component by λ ÷ 4^bits, and
// one minimum and step per component over all tokens. Does not know: logits, documents, contexts.
// Source: method.md 6's description of those repositories, restated. Generous where they differ: keys without RoPE, bits
// shared out over the whole stream, an entropy stage by component, covariances from the profile's calibration texts.

import { promisify } from 'node:util';
import { constants, deflateRaw } from 'node:zlib';
import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS, elementBytes, headDim, streamWidth } from '../../base/geometry.ts';
import { f16ToF32, f32ToF16 } from '../../base/half.ts';
import type { Transforms } from '../../cache/transforms.ts';
import { gatherRows, parseState, scatterRows } from '../../engines/llama/state.ts';
import { symmetricEigen } from '../../linalg/symmetric-eigen.ts';
import type { Treatment } from '../treatment.ts';
import { requireGeometry } from '../treatment.ts';
import { ratiosOf } from './treatments.ts';

const MOST_BITS = 8;
/** Bits of a component's f16 minimum and step, once per cache. */
const METADATA_BITS = 32;
/** Rows of the profile's basis read at a time. */
const BASIS_ROWS = 256;

export interface PerHeadPcaOptions {
  /** Bits of codes per token and stream are 16 · p ÷ ratio; minima and steps come on top. */
  readonly ratio: number;
  readonly sinks: number;
  readonly window: number;
}

/** One stream's bases: heads [layers · kvHeads], each f64[dim, dim] with its eigenvalues. */
interface HeadBases {
  readonly dim: number;
  readonly vectors: readonly Float64Array[];
  readonly values: readonly Float64Array[];
}

const deflate = promisify<Uint8Array, object, Buffer>(deflateRaw);

/** Sinks and window stay exact, as in the clones. f16 caches only. */
export function perHeadPcaTreatment(transforms: Transforms, options: PerHeadPcaOptions): Treatment {
  const { ratio, sinks, window } = options;
  const { profile, backend } = transforms;
  const { geometry, rope } = profile.model;
  const bases: Partial<Record<StreamKind, HeadBases>> = {};
  return {
    label: `per-head PCA ${ratio}x`,
    ratio,
    settings: { profile: profile.id, ratio, sinks, window, backend: backend.id },
    apply: async (state) => {
      for (const stream of STREAMS) bases[stream] ??= await headBases(transforms, stream);
      const startedMs = performance.now();
      const treated = state.slice();
      const view = parseState(treated);
      requireGeometry(view, geometry);
      const { tokenCount } = view;
      const first = Math.min(sinks, tokenCount);
      const last = Math.max(first, tokenCount - window);
      const range = { startToken: first, endToken: last };
      const positions = view.positions.subarray(first, last);
      const layers = { startLayer: 0, endLayer: geometry.layers };
      let codedBytes = 0;
      for (const stream of STREAMS) {
        const found = bases[stream];
        if (found === undefined || last === first) continue;
        const width = streamWidth(geometry, stream);
        const layout = {
          layers: geometry.layers,
          heads: geometry.kvHeads,
          headDim: found.dim,
          element: 'f16' as const,
        };
        const streamRope = stream === 'key' ? rope : null;
        const bytes = new Uint8Array((last - first) * elementBytes('f16', width));
        const rows = new Float32Array((last - first) * width); // [tokens, p]
        gatherRows(view, stream, layers, range, bytes);
        await backend.readRows(layout, streamRope, bytes, positions, rows);
        codedBytes += await codeHeads(rows, last - first, profile.stream(stream).mean, found, (16 * width) / ratio);
        await backend.writeRows(layout, streamRope, rows, positions, bytes);
        scatterRows(view, stream, layers, range, bytes);
      }
      const counts = { geometry, tokenCount, windowTokens: tokenCount - last, sinkTokens: first, codedBytes };
      return { state: treated, ...ratiosOf(counts), compressMs: performance.now() - startedMs, restoreMs: 0 };
    },
  };
}

/** Each head's covariance is its block of Bᵀ · diag(variances) · B, with B the profile's basis: the energy it reaches. */
async function headBases({ profile }: Transforms, stream: StreamKind): Promise<HeadBases> {
  const { geometry } = profile.model;
  const { synthesis: basis, variances } = profile.stream(stream);
  const dim = headDim(geometry, stream);
  const width = streamWidth(geometry, stream);
  const heads = width / dim;
  const covariances = Array.from({ length: heads }, () => new Float64Array(dim * dim));
  const rows = new Float32Array(Math.min(BASIS_ROWS, basis.rows) * width);
  for (let start = 0; start < basis.rows; start += BASIS_ROWS) {
    const end = Math.min(basis.rows, start + BASIS_ROWS);
    await basis.read(start, end, rows);
    for (let row = start; row < end; row++) {
      const variance = variances[row] ?? 0;
      for (let head = 0; head < heads; head++) {
        const covariance = covariances[head]!;
        const from = (row - start) * width + head * dim;
        for (let i = 0; i < dim; i++) {
          const scaled = variance * rows[from + i]!;
          for (let j = 0; j < dim; j++) covariance[i * dim + j]! += scaled * rows[from + j]!;
        }
      }
    }
  }
  const solved = covariances.map((covariance) => symmetricEigen(covariance, dim));
  return { dim, vectors: solved.map(({ vectors }) => vectors), values: solved.map(({ values }) => values) };
}

/** Replaces f32[tokens, p] by what the codec gives back; returns the bytes it would store. */
async function codeHeads(
  rows: Float32Array,
  tokens: number,
  mean: Float32Array,
  { dim, vectors, values }: HeadBases,
  bitsPerToken: number,
): Promise<number> {
  const width = mean.length;
  const bits = shareBits(values, Math.floor(bitsPerToken));
  let storedBits = 0;
  const coefficient = new Float32Array(tokens);
  for (const [head, basis] of vectors.entries()) {
    const at = head * dim;
    const restored = new Float32Array(tokens * dim);
    for (let token = 0; token < tokens; token++) restored.set(mean.subarray(at, at + dim), token * dim);
    for (let component = 0; component < dim; component++) {
      const own = bits[at + component]!;
      if (own === 0) continue;
      const vector = basis.subarray(component * dim, (component + 1) * dim);
      for (let token = 0; token < tokens; token++) {
        let sum = 0;
        for (let i = 0; i < dim; i++) sum += (rows[token * width + at + i]! - mean[at + i]!) * vector[i]!;
        coefficient[token] = sum;
      }
      const codes = quantise(coefficient, 2 ** own - 1);
      const coded = await deflate(codes, { level: 1, strategy: constants.Z_HUFFMAN_ONLY });
      storedBits += Math.min(own * tokens, 8 * coded.length) + METADATA_BITS;
      for (let token = 0; token < tokens; token++) {
        for (let i = 0; i < dim; i++) restored[token * dim + i]! += coefficient[token]! * vector[i]!;
      }
    }
    for (let token = 0; token < tokens; token++) {
      rows.set(restored.subarray(token * dim, (token + 1) * dim), token * width + at);
    }
  }
  return storedBits / 8;
}

/** Whole bits to the component whose λ ÷ 4^bits is largest, one after the other: i8[heads · dim]. */
function shareBits(values: readonly Float64Array[], budgetBits: number): Int8Array {
  const flat = values.flatMap((head) => [...head]);
  const bits = new Int8Array(flat.length);
  // The order of all (component, bit) pairs by error is the order in which they are granted.
  const grants = flat
    .flatMap((value, index) => Array.from({ length: MOST_BITS }, (_, bit) => ({ index, error: value / 4 ** bit })))
    .filter(({ error }) => error > 0)
    .toSorted((a, b) => b.error - a.error);
  for (const { index } of grants.slice(0, budgetBits)) bits[index]!++;
  return bits;
}

/** Min/max quantisation in place over all tokens, minimum and step as f16; returns the codes, a byte each. */
function quantise(values: Float32Array, levels: number): Uint8Array {
  const half = (value: number): number => f16ToF32(f32ToF16(value));
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  const minimum = half(least);
  const step = half((most - minimum) / levels);
  return Uint8Array.from(values, (value, i) => {
    const code = step > 0 ? Math.min(levels, Math.max(0, Math.round((value - minimum) / step))) : 0;
    values[i] = minimum + code * step;
    return code;
  });
}
