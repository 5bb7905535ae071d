// The sensitivity file: what a model's output loses by errors in each head's rows, measured by forward passes or by
// gradients (kvtc_collect writes the same file). Format: docs/format/sensitivity.md.
// Does not know: how sensitivities are measured or used.

import { z } from 'zod';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { TensorShape } from '../profile/safetensors.ts';
import { headerPrefix } from '../profile/safetensors.ts';
import type { MeasuredModel, MeasurementKind } from './measurement-file.ts';
import { readMeasurement } from './measurement-file.ts';

const KIND = {
  format: 'kvtc-sensitivity',
  version: '1',
  code: 'KVTC_SENSITIVITY_MALFORMED',
  /** Far above any file of use. */
  tensorLimitBytes: 2 ** 31,
} as const satisfies MeasurementKind;

/** One stream's metrics: errors e of head h's row cost eᵀ·M_h·e, in the unit of the measurement. */
export interface HeadMetrics {
  /** Layers · KV heads, layer-major. */
  readonly heads: number;
  readonly headDim: number;
  /** f32[heads, headDim, headDim], symmetric, in the engine's order of dimensions; keys before RoPE. */
  readonly blocks: Float32Array;
}

/** Importances of tokens: what an error of the same size in all coefficients of a token costs. */
export interface TokenImportance {
  /** i32[documents, tokens]: ids. */
  readonly tokens: Int32Array;
  readonly documents: number;
  readonly documentTokens: number;
  /** Tokens before what was predicted when this was measured: distances are from there. */
  readonly prefixTokens: number;
  /** f32[documents, tokens]; NaN where not measured (sinks, window, beyond the prefix). */
  readonly key: Float32Array;
  readonly value: Float32Array;
}

export interface Sensitivity {
  readonly method: 'forward' | 'gradient';
  readonly producer: string;
  readonly model: MeasuredModel;
  /** Settings of the measurement, for the reader's information. */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly metrics: Readonly<Record<StreamKind, HeadMetrics>>;
  readonly importance: TokenImportance | null;
}

const settingsSchema = z.record(z.string(), z.unknown());

/**
 * Reads a sensitivity file whole. Throws KVTC_FILE_NOT_FOUND, KVTC_SENSITIVITY_MALFORMED (structure, shapes, values that
 * are not finite, negative diagonals), KVTC_MODEL_MISMATCH when `model` is given and has another fingerprint, architecture or
 * shape.
 */
export function readSensitivity(path: string, model?: ModelIdentity): Promise<Sensitivity> {
  return readMeasurement(path, KIND, model, async (file) => {
    const { text, read, malformed } = file;
    const method = text('method');
    if (method !== 'forward' && method !== 'gradient') throw malformed(`its method is "${method}"`);
    const { geometry } = file.model;
    const heads = geometry.layers * geometry.kvHeads;
    const metrics: Partial<Record<StreamKind, HeadMetrics>> = {};
    for (const stream of STREAMS) {
      const dim = headDim(geometry, stream);
      const blocks = new Float32Array(await read(`${stream}.metric`, { type: 'F32', shape: [heads, dim, dim] }));
      metrics[stream] = checkMetrics(path, stream, { heads, headDim: dim, blocks });
    }
    const shape = file.shape('documents');
    const settings = file.json('settings', settingsSchema);
    let importance: TokenImportance | null = null;
    if (shape !== undefined) {
      const [documents = 0, documentTokens = 0] = shape;
      const values = async (stream: StreamKind): Promise<Float32Array> =>
        checkImportance(path, new Float32Array(await read(`${stream}.importance`, { type: 'F32', shape })));
      importance = {
        documents,
        documentTokens,
        prefixTokens: prefixTokensOf(settings, documentTokens),
        tokens: new Int32Array(await read('documents', { type: 'I32', shape: [documents, documentTokens] })),
        key: await values('key'),
        value: await values('value'),
      };
    }
    return {
      method,
      producer: text('producer'),
      model: file.model,
      settings,
      metrics: metrics as Record<StreamKind, HeadMetrics>,
      importance,
    };
  });
}

/** Writes a sensitivity file; it appears whole or not at all. Same contents → same bytes. Throws KVTC_WRITE_FAILED. */
export async function writeSensitivity(path: string, sensitivity: Sensitivity): Promise<void> {
  const { model, metrics, importance } = sensitivity;
  const metadata = {
    format: KIND.format,
    version: KIND.version,
    method: sensitivity.method,
    producer: sensitivity.producer,
    model: JSON.stringify({
      architecture: model.architecture,
      name: model.name,
      fingerprint: model.fingerprint,
      ...model.geometry,
    }),
    settings: JSON.stringify(sensitivity.settings),
  };
  const tensors: (TensorShape & { name: string; values: Float32Array | Int32Array })[] = [];
  for (const stream of STREAMS) {
    const { heads, headDim: dim, blocks } = checkMetrics(path, stream, metrics[stream]);
    tensors.push({ name: `${stream}.metric`, type: 'F32', shape: [heads, dim, dim], values: blocks });
  }
  if (importance !== null) {
    const shape = [importance.documents, importance.documentTokens];
    tensors.push({ name: 'documents', type: 'I32', shape, values: importance.tokens });
    for (const stream of STREAMS) {
      tensors.push({ name: `${stream}.importance`, type: 'F32', shape, values: importance[stream] });
    }
  }
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1));
  const prefix = headerPrefix(metadata, tensors);
  await replaceFile(path, async (file) => {
    await writeFully(file, prefix, 0);
    let offsetBytes = prefix.length;
    for (const { values } of tensors) {
      await writeFully(file, new Uint8Array(values.buffer, values.byteOffset, values.byteLength), offsetBytes);
      offsetBytes += values.byteLength;
    }
  });
}

/** As the settings say; files of other makers may not, and then documents are prefixes. */
function prefixTokensOf({ prefixTokens }: Sensitivity['settings'], documentTokens: number): number {
  const known = typeof prefixTokens === 'number' && Number.isSafeInteger(prefixTokens);
  return known && prefixTokens > 0 && prefixTokens <= documentTokens ? prefixTokens : documentTokens;
}

function checkMetrics(path: string, stream: StreamKind, metrics: HeadMetrics): HeadMetrics {
  const { heads, headDim: dim, blocks } = metrics;
  if (!blocks.every(Number.isFinite)) throw malformed(path, `${stream}.metric holds NaN or Inf`);
  for (let h = 0; h < heads; h++) {
    for (let d = 0; d < dim; d++) {
      if (blocks[(h * dim + d) * dim + d]! < 0) throw malformed(path, `${stream}.metric of head ${h} is negative`);
    }
  }
  return metrics;
}

function checkImportance(path: string, values: Float32Array): Float32Array {
  if (!values.every((value) => Number.isNaN(value) || (value >= 0 && value < Infinity))) {
    throw malformed(path, 'an importance is negative or infinite');
  }
  return values;
}

function malformed(path: string, problem: string): KvtcError {
  return new KvtcError(KIND.code, `${KIND.format} file ${path}: ${problem}`, { path });
}
