// What the sensitivity file and the moments file have in common: a safetensors file with a format, a version and the model
// it was measured on. Format: docs/format/sensitivity.md. Does not know what was measured.

import { z } from 'zod';
import type { ErrorCode } from '../base/errors.ts';
import { KvtcError, isKvtcError } from '../base/errors.ts';
import type { CacheGeometry } from '../base/geometry.ts';
import { openForReading } from '../profile/open-profile.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { TensorShape } from '../profile/safetensors.ts';
import { parseJson, readExactly, readHeader } from '../profile/safetensors.ts';
import type { RopePairing } from '../rope/description.ts';

export interface MeasuredModel {
  readonly architecture: string;
  readonly name: string;
  /** Of the published file, as in a profile; null in files of writers that did not know it. */
  readonly fingerprint: string | null;
  readonly geometry: CacheGeometry;
}

/** An open measurement: its reader is valid until `use` of readMeasurement is done. */
export interface Measurement {
  readonly model: MeasuredModel;
  /** A string of the metadata. */
  readonly text: (key: string) => string;
  /** A JSON object of the metadata. */
  readonly json: <T>(key: string, schema: z.ZodType<T>) => T;
  /** Shape of a tensor, or undefined where the file has none of that name. */
  readonly shape: (tensor: string) => readonly number[] | undefined;
  /** Data of a tensor of exactly that type and shape, in memory of its own. */
  readonly read: (tensor: string, expected: TensorShape) => Promise<ArrayBuffer>;
  /** The error that names the file. */
  readonly malformed: (problem: string) => KvtcError;
}

export interface MeasurementKind {
  /** `format` of the metadata. */
  readonly format: string;
  readonly version: string;
  /** What its damage is called. */
  readonly code: ErrorCode;
  /** Longest tensor, in bytes; nothing larger is allocated. */
  readonly tensorLimitBytes: number;
}

const count = z.int().positive().max(65_536);
const modelSchema = z.looseObject({
  architecture: z.string().max(64),
  name: z.string().max(1024),
  layers: count,
  kvHeads: count,
  keyHeadDim: count,
  valueHeadDim: count,
  keyPairing: z.enum(['interleaved', 'half-split']).optional(),
  fingerprint: z
    .string()
    .regex(/^[0-9a-f]{64}$/u)
    .nullable()
    .default(null),
});

/**
 * Opens a measurement, checks its header, and its model against `model` where given, and lets `use` read it.
 * Throws KVTC_FILE_NOT_FOUND, the kind's code, KVTC_MODEL_MISMATCH, and what `use` throws.
 */
export async function readMeasurement<T>(
  path: string,
  kind: MeasurementKind,
  model: ModelIdentity | undefined,
  use: (measurement: Measurement) => Promise<T>,
): Promise<T> {
  const malformed = (problem: string, cause?: unknown): KvtcError =>
    new KvtcError(kind.code, `${kind.format} file ${path}: ${problem}`, { path }, { cause });
  const file = await openForReading(path);
  try {
    const header = await readHeader(file, path);
    const text = (key: string): string => {
      const found = header.metadata.get(key);
      if (found === undefined) throw malformed(`it has no "${key}" in its metadata`);
      return found;
    };
    if (text('format') !== kind.format) throw malformed(`its format is "${text('format')}", not ${kind.format}`);
    if (text('version') !== kind.version) {
      throw malformed(`its version is ${text('version')}; ${kind.version} is read`);
    }
    const json = <J>(key: string, schema: z.ZodType<J>): J => parseJson(text(key), schema, path, key);
    const { architecture, name, fingerprint, keyPairing, ...facts } = json('model', modelSchema);
    const { layers, kvHeads, keyHeadDim, valueHeadDim } = facts;
    const measured = { architecture, name, fingerprint, geometry: { layers, kvHeads, keyHeadDim, valueHeadDim } };
    if (model !== undefined) checkModel(path, model, measured, keyPairing);
    return await use({
      model: measured,
      text,
      json,
      shape: (tensor) => header.tensors.get(tensor)?.shape,
      read: async (tensor, { type, shape }) => {
        const entry = header.tensors.get(tensor);
        if (entry === undefined) throw malformed(`it has no tensor ${tensor}`);
        if (entry.type !== type || entry.shape.join() !== shape.join()) {
          const [got, wanted] = [entry, { type, shape }].map((t) => `${t.type} [${t.shape.join(', ')}]`);
          throw malformed(`${tensor} is ${got}, expected ${wanted}`);
        }
        if (entry.lengthBytes > kind.tensorLimitBytes) throw malformed(`${tensor} has ${entry.lengthBytes} bytes`);
        const bytes = new Uint8Array(entry.lengthBytes);
        await readExactly(file, bytes, entry.offsetBytes, path);
        return bytes.buffer;
      },
      malformed,
    });
  } catch (error) {
    // The safetensors reader speaks of profiles.
    if (isKvtcError(error, 'KVTC_PROFILE_MALFORMED')) throw malformed(error.message, error);
    throw error;
  } finally {
    await file.close();
  }
}

function checkModel(
  path: string,
  model: ModelIdentity,
  measured: MeasuredModel,
  keyPairing: RopePairing | undefined,
): void {
  const { architecture, fingerprint, geometry } = measured;
  const same =
    (fingerprint === null || fingerprint === model.fingerprint) &&
    (keyPairing === undefined || keyPairing === model.rope.pairing) &&
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
