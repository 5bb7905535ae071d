// Rivals as treatments of a cache: quantisers on rows, PCA truncation, and forgetting all but the newest tokens.
// Does not know: logits, documents, contexts.

import { KvtcError } from '../../base/errors.ts';
import type { CacheGeometry } from '../../base/geometry.ts';
import { STREAMS, headDim, layerWidth, streamWidth } from '../../base/geometry.ts';
import { decodeF16, encodeF16, f16ToF32, f32ToF16 } from '../../base/half.ts';
import type { Transforms } from '../../cache/transforms.ts';
import { PAPER_VALUE_BYTES, effectiveRatio, paperRatio } from '../../codec/accounting.ts';
import { createState, gatherRows, parseState, scatterRows } from '../../engines/llama/state.ts';
import type { Treatment } from '../treatment.ts';
import { eachLayerBytes, rawStateBytes, requireGeometry } from '../treatment.ts';
import type { RowCodec } from './row-codecs.ts';
import { fp8PerHead, kivi, q4_0, q4_1, q8_0 } from './row-codecs.ts';

/** Tokens whose coefficients are truncated at a time: bounds memory at tokens · (p + rank) f32. */
const CHUNK_TOKENS = 256;

/** A quantiser on rows over the whole prefix (its own window aside), f16 caches only; keys stay rotated. */
export function rowCodecTreatment(codec: RowCodec, geometry: CacheGeometry): Treatment {
  return {
    label: codec.label,
    ratio: null,
    settings: { window: codec.window },
    apply: async (state) => {
      const startedMs = performance.now();
      const treated = state.slice();
      const view = parseState(treated);
      requireGeometry(view, geometry);
      let storedBits = 0;
      for (const stream of STREAMS) {
        const shape = { stream, tokens: view.tokenCount, heads: geometry.kvHeads, headDim: headDim(geometry, stream) };
        const rows = new Float32Array(view.tokenCount * layerWidth(geometry, stream)); // [tokens, width]
        eachLayerBytes(view, stream, (bytes) => {
          const halves = new Uint16Array(bytes.buffer);
          decodeF16(halves, rows);
          storedBits += codec.apply({ ...shape, rows });
          encodeF16(rows, halves);
        });
      }
      const windowTokens = Math.min(codec.window, view.tokenCount);
      const counts = { geometry, tokenCount: view.tokenCount, windowTokens, sinkTokens: 0, codedBytes: storedBits / 8 };
      return { state: treated, ...ratiosOf(counts), compressMs: performance.now() - startedMs, restoreMs: 0 };
    },
  };
}

/** The row quantisers that evidence.md 1.4 compares with. */
export function rowRivals(geometry: CacheGeometry): Treatment[] {
  return [q8_0, q4_0, q4_1, fp8PerHead, kivi(4), kivi(2)].map((codec) => rowCodecTreatment(codec, geometry));
}

export interface TruncationOptions {
  /** Components kept are p ÷ ratio of each stream, coefficients in f16. */
  readonly ratio: number;
  readonly sinks?: number | undefined;
  readonly window?: number | undefined;
}

/**
 * PCA truncation: the profile's basis cut to its first p ÷ ratio components, coefficients rounded to f16, sinks and
 * window exact. Shows what quantisation and allocation add to the transform. Throws KVTC_PROFILE_MISMATCH when the
 * profile's rank is too small for the ratio.
 */
export function truncationTreatment(transforms: Transforms, options: TruncationOptions): Treatment {
  const { ratio, sinks = 4, window = 128 } = options;
  const { profile } = transforms;
  const { geometry } = profile.model;
  return {
    label: `PCA truncation ${ratio}x`,
    ratio,
    settings: { profile: profile.id, ratio, sinks, window, backend: transforms.backend.id },
    apply: async (state) => {
      const startedMs = performance.now();
      const treated = state.slice();
      const view = parseState(treated);
      requireGeometry(view, geometry);
      const { tokenCount, positions } = view;
      const firstToken = Math.min(sinks, tokenCount);
      const lastToken = Math.max(firstToken, tokenCount - window);
      const allLayers = { startLayer: 0, endLayer: geometry.layers };
      let codedBytes = 0;
      for (const stream of STREAMS) {
        const p = streamWidth(geometry, stream);
        const rank = Math.floor(p / ratio);
        const analysis = await transforms.analysis(stream, rank, 'f16');
        const synthesis = await transforms.synthesis(stream, rank, 'f16');
        codedBytes += (lastToken - firstToken) * rank * 2;
        for (let startToken = firstToken; startToken < lastToken; startToken += CHUNK_TOKENS) {
          const range = { startToken, endToken: Math.min(lastToken, startToken + CHUNK_TOKENS) };
          const count = range.endToken - startToken;
          const rows = new Uint8Array(count * p * 2); // [layers][tokens][width] f16
          const coefficients = new Float32Array(count * rank); // [tokens, rank]
          const at = positions.subarray(startToken, range.endToken);
          gatherRows(view, stream, allLayers, range, rows);
          await analysis.project(rows, at, coefficients);
          for (let i = 0; i < coefficients.length; i++) coefficients[i] = f16ToF32(f32ToF16(coefficients[i]!));
          await synthesis.reconstruct({ values: coefficients }, at, allLayers, rows);
          scatterRows(view, stream, allLayers, range, rows);
        }
      }
      const windowTokens = tokenCount - lastToken;
      const counts = { geometry, tokenCount, windowTokens, sinkTokens: firstToken, codedBytes };
      return { state: treated, ...ratiosOf(counts), compressMs: performance.now() - startedMs, restoreMs: 0 };
    },
  };
}

/**
 * Recency eviction: only the sinks and the newest tokens stay, tokens ÷ ratio in all, at their own positions. What it
 * forgets is gone, so it is the floor for any codec at that ratio. Throws KVTC_OPTION_INVALID for a ratio below 1.
 */
export function evictionTreatment(geometry: CacheGeometry, ratio: number, sinks = 4): Treatment {
  if (!(ratio >= 1)) {
    const message = `eviction ratio is ${ratio}; expected at least 1`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'ratio', got: ratio });
  }
  return {
    label: `recency eviction ${ratio}x`,
    ratio,
    settings: { ratio, sinks },
    apply: async (state) => {
      const startedMs = performance.now();
      const view = parseState(state);
      requireGeometry(view, geometry);
      const { tokenCount } = view;
      const kept = Math.max(1, Math.floor(tokenCount / ratio));
      const first = Math.min(sinks, kept - 1);
      const runs = [
        { startToken: 0, endToken: first },
        { startToken: tokenCount - (kept - first), endToken: tokenCount },
      ];
      const positions = new Int32Array(kept);
      positions.set(view.positions.subarray(0, first));
      positions.set(view.positions.subarray(tokenCount - (kept - first)), first);
      const { state: treated, view: left } = createState({
        format: 'blob',
        positions,
        layers: view.layers,
        keyType: view.keyType,
        valueType: view.valueType,
        keyWidth: layerWidth(geometry, 'key'),
        valueWidth: layerWidth(geometry, 'value'),
        vTransposed: view.vTransposed,
        streams: view.streams,
      });
      const allLayers = { startLayer: 0, endLayer: view.layers };
      for (const stream of STREAMS) {
        let at = 0;
        for (const run of runs) {
          const count = run.endToken - run.startToken;
          const rows = new Uint8Array(count * streamWidth(geometry, stream) * 2);
          gatherRows(view, stream, allLayers, run, rows);
          scatterRows(left, stream, allLayers, { startToken: at, endToken: at + count }, rows);
          at += count;
        }
      }
      const storedBytes = rawStateBytes(left);
      const evictedRatio = effectiveRatio(rawStateBytes(view), storedBytes);
      return {
        state: treated,
        paperRatio: evictedRatio,
        effectiveRatio: evictedRatio,
        storedBytes,
        compressMs: performance.now() - startedMs,
        restoreMs: 0,
      };
    },
  };
}

/** Both ratios and all bytes of a cache whose window and sinks stay f16; docs/accounting.md. */
export function ratiosOf(counts: {
  readonly geometry: CacheGeometry;
  readonly tokenCount: number;
  readonly windowTokens: number;
  readonly sinkTokens: number;
  readonly codedBytes: number;
}): { paperRatio: number; effectiveRatio: number; storedBytes: number } {
  const { geometry, tokenCount, windowTokens, sinkTokens, codedBytes } = counts;
  const valuesPerToken = streamWidth(geometry, 'key') + streamWidth(geometry, 'value');
  const tokenBytes = valuesPerToken * PAPER_VALUE_BYTES; // the caches treated here are f16
  const storedBytes = codedBytes + (windowTokens + sinkTokens) * tokenBytes;
  return {
    paperRatio: paperRatio({ valuesPerToken, tokenCount, windowTokens, sinkTokens, chunkBytes: codedBytes }),
    effectiveRatio: effectiveRatio(tokenCount * tokenBytes, storedBytes),
    storedBytes,
  };
}
