// The moments file that `python -m kvtc_collect moments` writes: second moments about a shift, in f64, in place of the
// collecting half of a calibration. Format: docs/format/sensitivity.md. Does not know how a basis is fitted.

import { basename } from 'node:path';
import { z } from 'zod';
import type { StreamKind } from '../base/geometry.ts';
import { streamWidth } from '../base/geometry.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { Measurement, MeasurementKind } from './measurement-file.ts';
import { readMeasurement } from './measurement-file.ts';
import type { Moments } from './moments.ts';
import { triangleSize } from '../linalg/dense.ts';
import { momentsFromMeans } from './moments.ts';
import type { TokenDocument } from './sample.ts';
import { hashTokens } from './sample.ts';
import type { TokenMoments } from './token-regression.ts';

const KIND = {
  format: 'kvtc-moments',
  version: '1',
  code: 'KVTC_MOMENTS_MALFORMED',
  /** The triangle of a stream of 32 768 values. */
  tensorLimitBytes: 2 ** 32,
} as const satisfies MeasurementKind;

/** By rounding alone a variance can come out this much below zero, as a share of the second moment. */
const NEGATIVE_SHARE = 1e-6;

const settingsSchema = z.looseObject({ sinks: z.int().nonnegative(), rows: z.int().min(2) });

export interface MeasuredMoments {
  readonly moments: Readonly<Record<StreamKind, Moments>>;
  /** First tokens of each document that are not in the moments. */
  readonly sinks: number;
  /** Moments of what token ids tell; null in files of writers that did not measure them. */
  readonly tokens: TokenMoments | null;
  /** What the moments were measured on: no other calibration rows may come from these. */
  readonly documents: readonly TokenDocument[];
}

/**
 * Reads a moments file. Takes 4·width² bytes a stream, and no more while reading. Throws KVTC_FILE_NOT_FOUND,
 * KVTC_MOMENTS_MALFORMED (structure, shapes, values that are not finite, negative variances, a row count that the
 * documents do not give), KVTC_MODEL_MISMATCH when it was measured on another model.
 */
export function readMeasuredMoments(path: string, model: ModelIdentity): Promise<MeasuredMoments> {
  return readMeasurement(path, KIND, model, async (file) => {
    const { sinks, rows } = file.json('settings', settingsSchema);
    const documents = await readDocuments(file, `${basename(path)} (${file.text('producer')})`);
    const expected = documents.reduce((sum, { tokens }) => sum + tokens.length - sinks, 0);
    if (rows !== expected) {
      throw file.malformed(
        `it has ${rows} rows; ${documents.length} documents without ${sinks} sinks give ${expected}`,
      );
    }
    const read = async (stream: StreamKind): Promise<Moments> => {
      const width = streamWidth(model.geometry, stream);
      const vector = { shape: [width] };
      const shift = new Float32Array(await file.read(`${stream}.shift`, { type: 'F32', ...vector }));
      const mean = new Float64Array(await file.read(`${stream}.mean`, { type: 'F64', ...vector }));
      const triangle = { type: 'F64', shape: [triangleSize(width)] } as const;
      const second = new Float64Array(await file.read(`${stream}.second`, triangle));
      for (const [name, values] of Object.entries({ shift, mean, second })) {
        if (!values.every(Number.isFinite)) throw file.malformed(`${stream}.${name} holds NaN or Inf`);
      }
      for (let i = 0; i < width; i++) {
        const square = second[triangleSize(i) + i]!;
        if (!(square - mean[i]! ** 2 >= -NEGATIVE_SHARE * square)) {
          throw file.malformed(`the variance of ${stream} feature ${i} is negative`);
        }
      }
      return momentsFromMeans(`${model.fingerprint} ${stream} measured`, { rows, shift, mean, second });
    };
    const moments = { key: await read('key'), value: await read('value') };
    return { moments, tokens: await readTokenMoments(file, model), sinks, documents };
  });
}

async function readTokenMoments(file: Measurement, model: ModelIdentity): Promise<TokenMoments | null> {
  const features = file.shape('token.mean')?.[0];
  if (features === undefined) return null;
  if (features < 2 || features % 2 !== 0)
    throw file.malformed(`token.mean has ${features} features, no two embeddings`);
  const mean = new Float64Array(await file.read('token.mean', { type: 'F64', shape: [features] }));
  const triangle = { type: 'F64', shape: [triangleSize(features)] } as const;
  const second = new Float64Array(await file.read('token.second', triangle));
  const cross = async (stream: StreamKind): Promise<Float32Array> => {
    const shape = [streamWidth(model.geometry, stream), features];
    return new Float32Array(await file.read(`${stream}.token`, { type: 'F32', shape }));
  };
  const found = { width: features / 2, mean, second, cross: { key: await cross('key'), value: await cross('value') } };
  for (const values of [mean, second, found.cross.key, found.cross.value]) {
    if (!values.every(Number.isFinite)) throw file.malformed('its moments of tokens hold NaN or Inf');
  }
  return found;
}

async function readDocuments(file: Measurement, source: string): Promise<TokenDocument[]> {
  const [count = 0, length = 0] = file.shape('documents') ?? [];
  const all = new Int32Array(await file.read('documents', { type: 'I32', shape: [count, length] }));
  return Array.from({ length: count }, (_, d) => {
    const tokens = all.slice(d * length, (d + 1) * length);
    return { group: 'moments', source: `${source} ${d}`, tokens, sha256: hashTokens(tokens) };
  });
}
