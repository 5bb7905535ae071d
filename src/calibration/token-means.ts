// What token ids tell of a token's coefficients before anything of it is decoded: features from its embedding and its
// predecessor's, and the coefficients to expect with them. Encoders take these out, decoders put them back.
// Does not know: files, models, where embeddings come from. Format: docs/format/profile.md, version 3.

import { floatPool } from '../base/float-pool.ts';
import type { StreamKind, TokenRange } from '../base/geometry.ts';
import { KvtcError, invariant } from '../base/errors.ts';
import type { Backend, MatrixSource, Precision, PreparedMatrix } from '../linalg/backend.ts';
import { denseMatrix } from '../linalg/dense.ts';
import type { TokenMeans } from '../profile/profile.ts';

/** f32[ids, embedding width] of token ids: the model's own input embeddings, dequantised. */
export type EmbeddingSource = (ids: Int32Array) => Promise<Float32Array>;

/** Added to an embedding's mean square: that of an unused token may be zero. */
const LEAST_SQUARE = 1e-12;

/** Coefficients to expect of the tokens of one sequence. */
export interface SequenceMeans {
  /**
   * Adds `sign` times the expected leading coefficients to f32[tokens, rank] of a range or of some tokens, in place: 1 to
   * put them back, −1 to take them out. `components`: how many of them, of all tokens or i32[tokens]. Calls may overlap.
   */
  add(
    stream: StreamKind,
    which: TokenRange | readonly number[],
    coefficients: Float32Array,
    shape: { readonly rank: number; readonly components: number | Int32Array },
    sign: 1 | -1,
  ): Promise<void>;
}

/** A profile's token means, ready to multiply. Close them. */
export interface OpenTokenMeans {
  /** Reads and projects the embeddings of a sequence's ids, each once. */
  of(tokens: Int32Array): Promise<SequenceMeans>;
  close(): void;
}

/**
 * Prepares the matrices in the given precision. Throws KVTC_BACKEND_FAILED; `of` throws
 * KVTC_PROFILE_MISMATCH for embeddings of another width, and what `embeddings` throws.
 * Memory: 8 bytes × dims for every distinct id of a sequence.
 */
export async function openTokenMeans(
  means: TokenMeans,
  embeddings: EmbeddingSource,
  backend: Backend,
  precision: Precision = 'f32',
): Promise<OpenTokenMeans> {
  const { dims, width, offsets } = means;
  // Row d of [dims, 2·width] is [own | before]; one product takes both parts of an embedding: [own; before], [2·dims, width].
  const both = new Float32Array(2 * dims * width);
  await means.features.read(0, dims, both);
  const stacked = new Float32Array(both.length);
  for (let d = 0; d < dims; d++) {
    stacked.set(both.subarray(2 * d * width, (2 * d + 1) * width), d * width);
    stacked.set(both.subarray((2 * d + 1) * width, (2 * d + 2) * width), (dims + d) * width);
  }
  const prepared: PreparedMatrix[] = [];
  const prepare = async (source: MatrixSource, as: Precision) => {
    const matrix = await backend.prepareMatrix(source, as);
    prepared.push(matrix);
    return matrix;
  };
  const projection = await prepare(denseMatrix(stacked, 2 * dims, width), precision);
  const expected = {
    key: await prepare(means.expected.key, precision),
    value: await prepare(means.expected.value, precision),
  };
  return {
    of: async (tokens) => {
      const ids = Int32Array.from(new Set(tokens)).toSorted();
      const slots = new Map([...ids].map((id, slot) => [id, slot]));
      const values = await embeddings(ids);
      if (values.length !== ids.length * width) {
        const got = values.length / ids.length;
        const message = `the profile's features take embeddings of ${width} numbers; the model's have ${got}`;
        throw new KvtcError('KVTC_PROFILE_MISMATCH', message, { gotWidth: got, expectedWidth: width });
      }
      for (let slot = 0; slot < ids.length; slot++)
        normaliseEmbedding(values.subarray(slot * width, (slot + 1) * width));
      const table = new Float32Array(ids.length * 2 * dims);
      await projection.multiply(values, ids.length, table);
      /** f32[positions, dims] */
      const featuresOf = (positions: readonly number[]): Float32Array => {
        const out = new Float32Array(positions.length * dims);
        for (const [i, t] of positions.entries()) {
          invariant(t < tokens.length, `position ${t} of ${tokens.length} tokens`);
          const at = i * dims;
          const own = slots.get(tokens[t]!)! * 2 * dims;
          const before = t === 0 ? -1 : slots.get(tokens[t - 1]!)! * 2 * dims + dims;
          for (let d = 0; d < dims; d++) {
            out[at + d] = table[own + d]! + (before < 0 ? 0 : table[before + d]!) - offsets[d]!;
          }
        }
        return out;
      };
      const pool = floatPool();
      // Both streams of a range are coded one after the other.
      let last: { readonly range: TokenRange; readonly features: Float32Array } | null = null;
      const ofRange = (range: TokenRange): Float32Array => {
        const same = last?.range.startToken === range.startToken && last.range.endToken === range.endToken;
        if (!same || last === null) last = { range, features: featuresOf(positionsOf(range)) };
        return last.features;
      };
      return {
        add: async (stream, which, coefficients, { rank, components }, sign) => {
          const most = typeof components === 'number' ? components : Math.max(...components);
          const rows = Math.min(rank, most, expected[stream].rows);
          if (rows === 0) return;
          const features = 'startToken' in which ? ofRange(which) : featuresOf(which);
          const count = features.length / dims;
          const product = pool.take(count * rows);
          await expected[stream].multiply(features, count, product, { startRow: 0, endRow: rows });
          for (let t = 0; t < count; t++) {
            const told = typeof components === 'number' ? rows : Math.min(rows, components[t]!);
            const from = t * rows;
            const to = t * rank;
            for (let k = 0; k < told; k++) coefficients[to + k]! += sign * product[from + k]!;
          }
          pool.give(product);
        },
      };
    },
    close: () => {
      for (const matrix of prepared) matrix.close();
    },
  };
}

function positionsOf({ startToken, endToken }: TokenRange): number[] {
  return Array.from({ length: endToken - startToken }, (_, i) => startToken + i);
}

/** Over its root mean square, in place. */
export function normaliseEmbedding(embedding: Float32Array): void {
  let squares = 0;
  // By index: iterating takes three times as long, and a restore waits for it.
  for (let i = 0; i < embedding.length; i++) squares += embedding[i]! * embedding[i]!;
  const scale = 1 / Math.sqrt(squares / embedding.length + LEAST_SQUARE);
  for (let i = 0; i < embedding.length; i++) embedding[i]! *= scale;
}
