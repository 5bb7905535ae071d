// The sensitivity file: what a model's output loses by errors in each head's rows, measured by forward passes or by
// gradients (kvtc_collect writes the same file). Format: docs/format/sensitivity.md.
// Does not know: how sensitivities are measured or used.

import { z } from 'zod';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import { KvtcError, isKvtcError } from '../base/errors.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim } from '../base/geometry.ts';
import { openForReading } from '../profile/open-profile.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { SafetensorsHeader, TensorShape, TensorType } from '../profile/safetensors.ts';
import { headerPrefix, parseJson, readExactly, readHeader } from '../profile/safetensors.ts';

const FORMAT = 'kvtc-sensitivity';
const VERSION = '1';
/** Far above any file of use; nothing larger is allocated. */
const MAX_TENSOR_BYTES = 2 ** 31;

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
  /** f32[documents, tokens]; NaN where not measured (sinks, window, beyond the prefix). */
  readonly key: Float32Array;
  readonly value: Float32Array;
}

export interface Sensitivity {
  readonly method: 'forward' | 'gradient';
  readonly producer: string;
  readonly model: {
    readonly architecture: string;
    readonly name: string;
    /** Of the published file, as in a profile; null in files of writers that did not know it. */
    readonly fingerprint: string | null;
    readonly geometry: CacheGeometry;
  };
  /** Settings of the measurement, for the reader's information. */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly metrics: Readonly<Record<StreamKind, HeadMetrics>>;
  readonly importance: TokenImportance | null;
}

const count = z.int().positive().max(65_536);
const modelSchema = z.looseObject({
  architecture: z.string().max(64),
  name: z.string().max(1024),
  layers: count,
  kvHeads: count,
  keyHeadDim: count,
  valueHeadDim: count,
  fingerprint: z
    .string()
    .regex(/^[0-9a-f]{64}$/u)
    .nullable()
    .default(null),
});
const settingsSchema = z.record(z.string(), z.unknown());

/**
 * Reads a sensitivity file whole. Throws KVTC_FILE_NOT_FOUND, KVTC_SENSITIVITY_MALFORMED (structure, shapes, values that
 * are not finite, negative diagonals), KVTC_MODEL_MISMATCH when `model` is given and has another fingerprint, architecture or
 * shape.
 */
export async function readSensitivity(path: string, model?: ModelIdentity): Promise<Sensitivity> {
  const file = await openForReading(path);
  try {
    const header = await readHeader(file, path);
    const text = (key: string): string => {
      const found = header.metadata.get(key);
      if (found === undefined) throw malformed(path, `it has no "${key}" in its metadata`);
      return found;
    };
    if (text('format') !== FORMAT) throw malformed(path, `its format is "${text('format')}", not ${FORMAT}`);
    if (text('version') !== VERSION) throw malformed(path, `its version is ${text('version')}; ${VERSION} is read`);
    const method = text('method');
    if (method !== 'forward' && method !== 'gradient') throw malformed(path, `its method is "${method}"`);
    const facts = parseJson(text('model'), modelSchema, path, 'model');
    const { architecture, name, fingerprint, layers, kvHeads, keyHeadDim, valueHeadDim } = facts;
    const geometry = { layers, kvHeads, keyHeadDim, valueHeadDim };
    if (model !== undefined) checkModel(path, model, { architecture, name, fingerprint, geometry });
    const read = async (tensor: string, type: TensorType, shape: readonly number[]): Promise<ArrayBuffer> =>
      (await readTensor(file, header, path, tensor, type, shape)).buffer;
    const metrics: Partial<Record<StreamKind, HeadMetrics>> = {};
    for (const stream of STREAMS) {
      const heads = layers * kvHeads;
      const dim = headDim(geometry, stream);
      const blocks = new Float32Array(await read(`${stream}.metric`, 'F32', [heads, dim, dim]));
      metrics[stream] = checkMetrics(path, stream, { heads, headDim: dim, blocks });
    }
    const documents = header.tensors.get('documents');
    let importance: TokenImportance | null = null;
    if (documents !== undefined) {
      const [documentCount = 0, documentTokens = 0] = documents.shape;
      const shape = [documentCount, documentTokens];
      importance = {
        documents: documentCount,
        documentTokens,
        tokens: new Int32Array(await read('documents', 'I32', shape)),
        key: checkImportance(path, new Float32Array(await read('key.importance', 'F32', shape))),
        value: checkImportance(path, new Float32Array(await read('value.importance', 'F32', shape))),
      };
    }
    return {
      method,
      producer: text('producer'),
      model: { architecture, name, fingerprint, geometry },
      settings: parseJson(text('settings'), settingsSchema, path, 'settings'),
      metrics: metrics as Record<StreamKind, HeadMetrics>,
      importance,
    };
  } catch (error) {
    // The container's reader speaks of profiles.
    if (isKvtcError(error, 'KVTC_PROFILE_MALFORMED')) throw malformed(path, error.message, error);
    throw error;
  } finally {
    await file.close();
  }
}

/** Writes a sensitivity file; it appears whole or not at all. Same contents → same bytes. Throws KVTC_WRITE_FAILED. */
export async function writeSensitivity(path: string, sensitivity: Sensitivity): Promise<void> {
  const { model, metrics, importance } = sensitivity;
  const metadata = {
    format: FORMAT,
    version: VERSION,
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

async function readTensor(
  file: Awaited<ReturnType<typeof openForReading>>,
  header: SafetensorsHeader,
  path: string,
  name: string,
  type: TensorType,
  shape: readonly number[],
): Promise<Uint8Array<ArrayBuffer>> {
  const entry = header.tensors.get(name);
  if (entry === undefined) throw malformed(path, `it has no tensor ${name}`);
  if (entry.type !== type || entry.shape.length !== shape.length || entry.shape.some((n, i) => n !== shape[i])) {
    throw malformed(
      path,
      `${name} is ${entry.type} [${entry.shape.join(', ')}], expected ${type} [${shape.join(', ')}]`,
    );
  }
  if (entry.lengthBytes > MAX_TENSOR_BYTES) throw malformed(path, `${name} has ${entry.lengthBytes} bytes`);
  const bytes = new Uint8Array(entry.lengthBytes);
  await readExactly(file, bytes, entry.offsetBytes, path);
  return bytes;
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

function checkModel(path: string, model: ModelIdentity, measured: Sensitivity['model']): void {
  const { architecture, fingerprint, geometry } = measured;
  const same =
    (fingerprint === null || fingerprint === model.fingerprint) &&
    model.architecture === architecture &&
    (Object.keys(geometry) as (keyof CacheGeometry)[]).every((key) => geometry[key] === model.geometry[key]);
  if (same) return;
  const words = (m: Pick<ModelIdentity, 'architecture' | 'name' | 'geometry'>, mark: string | null): string =>
    `${m.name} (${mark?.slice(0, 12) ?? 'no fingerprint'}; ${m.architecture}, ${m.geometry.layers} layers of ${m.geometry.kvHeads} KV heads)`;
  throw new KvtcError(
    'KVTC_MODEL_MISMATCH',
    `${path} was measured on ${words(measured, fingerprint)}, the model is ${words(model, model.fingerprint)}`,
    { path, got: fingerprint, expected: model.fingerprint },
  );
}

function malformed(path: string, problem: string, cause?: unknown): KvtcError {
  return new KvtcError('KVTC_SENSITIVITY_MALFORMED', `sensitivity file ${path}: ${problem}`, { path }, { cause });
}
