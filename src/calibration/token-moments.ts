// Moments of rows together with the embeddings of their tokens: rows made wider before they are collected, and the wide
// moments taken apart again. Does not know: models, files, what is fitted to them.

import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { streamWidth } from '../base/geometry.ts';
import { triangleSize } from '../linalg/dense.ts';
import type { RowSource } from './collect.ts';
import type { Moments } from './moments.ts';
import { meanAboutShift, meanProductAt } from './moments.ts';
import type { EmbeddingSource } from './token-means.ts';
import { normaliseEmbedding } from './token-means.ts';
import type { TokenMoments } from './token-regression.ts';

/** Numbers of one embedding, read off that of the first id. */
export async function embeddingWidth(embeddings: EmbeddingSource): Promise<number> {
  return (await embeddings(Int32Array.of(0))).length;
}

/**
 * A source of rows [row, own embedding, predecessor's], p + 2·width values, embeddings over their root mean square: what
 * docs/format/sensitivity.md calls features. A document's first token has zeros for a predecessor.
 */
export function withEmbeddings(rows: RowSource, embeddings: EmbeddingSource, geometry: CacheGeometry): RowSource {
  return async (document, options) => {
    const found = await rows(document, options);
    const { tokens } = document;
    const values = await embeddings(tokens);
    const width = values.length / tokens.length;
    for (let t = 0; t < tokens.length; t++) normaliseEmbedding(values.subarray(t * width, (t + 1) * width));
    const first = tokens.length - found.rowCount; // after the sinks
    const wider = (stream: StreamKind): Float32Array => {
      const p = streamWidth(geometry, stream);
      const wide = p + 2 * width;
      const out = new Float32Array(found.rowCount * wide);
      for (let r = 0; r < found.rowCount; r++) {
        const own = (first + r) * width;
        out.set(found[stream].subarray(r * p, (r + 1) * p), r * wide);
        out.set(values.subarray(own, own + width), r * wide + p);
        if (own > 0) out.set(values.subarray(own - width, own), r * wide + p + width);
      }
      return out;
    };
    return { rowCount: found.rowCount, key: wider('key'), value: wider('value') };
  };
}

/**
 * Takes wide moments apart: those of the rows, which stay where they are (a triangle's first rows are a triangle), and
 * those with embeddings of `width` numbers, which take 8·p·width bytes a stream.
 */
export function splitMoments(
  wide: Readonly<Record<StreamKind, Moments>>,
  width: number,
): { readonly moments: Readonly<Record<StreamKind, Moments>>; readonly tokens: TokenMoments } {
  const features = 2 * width;
  const cross = (stream: StreamKind): Float32Array => {
    const of = wide[stream];
    const p = of.frame.width - features;
    const about = meanAboutShift(of);
    const out = new Float32Array(p * features);
    for (let f = 0; f < features; f++) {
      const shift = of.frame.shift[p + f]!;
      for (let i = 0; i < p; i++) out[i * features + f] = meanProductAt(of, p + f, i) + shift * about[i]!;
    }
    return out;
  };
  // Both streams' moments hold those of the features; they are the same but for the rounding of products.
  const { key } = wide;
  const p = key.frame.width - features;
  const shift = key.frame.shift.subarray(p);
  const about = meanAboutShift(key).subarray(p);
  const second = new Float64Array(triangleSize(features));
  for (let i = 0, at = 0; i < features; i++) {
    for (let j = 0; j <= i; j++, at++) {
      const shifted = shift[i]! * about[j]! + shift[j]! * about[i]! + shift[i]! * shift[j]!;
      second[at] = meanProductAt(key, p + i, p + j) + shifted;
    }
  }
  const mean = about.map((value, f) => value + shift[f]!);
  const tokens = { width, mean, second, cross: { key: cross('key'), value: cross('value') } };
  return { moments: { key: leadingMoments(wide.key, features), value: leadingMoments(wide.value, features) }, tokens };
}

/** Of all features but the last so many; shares the memory. */
function leadingMoments({ frame, rows, sums, products }: Moments, without: number): Moments {
  const width = frame.width - without;
  const { key, shift, exponents } = frame;
  return {
    frame: { key, width, shift: shift.subarray(0, width), exponents: exponents.subarray(0, width) },
    rows,
    sums: sums.subarray(0, width),
    products: products.subarray(0, triangleSize(width)),
  };
}
