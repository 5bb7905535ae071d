// Opening a profile file: checks its structure, reads the small parts, serves the bases by ranges.
// File layout: docs/format/profile.md. Does not know: engines, containers, how a profile came about.

import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { z } from 'zod';
import { KvtcError, invariant } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, streamWidth } from '../base/geometry.ts';
import { decodeF16 } from '../base/half.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import type { ModelIdentity, PaperProfile, Profile, StreamTransform } from './profile.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import type { SafetensorsHeader } from './safetensors.ts';
import { malformed, parseJson, readExactly, readHeader } from './safetensors.ts';
import { part, readVector, tensor } from './tensors.ts';
import {
  PROFILE_FORMAT,
  PROFILE_VERSIONS,
  modelSchema,
  plansProblem,
  plansSchema,
  provenanceSchema,
  qualitySchema,
  unfilePlans,
} from './schema.ts';
import { readWtcParts } from './open-wtc.ts';

/** Bytes read at a time while hashing or copying tensor data. */
const COPY_BYTES = 4 * 1024 * 1024;

/** The order of tensors in a file that `writeProfile` makes. Readers take any order. */
export const TENSOR_NAMES = [
  'key.mean',
  'key.variances',
  'value.mean',
  'value.variances',
  'key.basis',
  'value.basis',
] as const;

/**
 * Opens a profile. Reads the header, means and variances (f32, a few tens of KB) and checks everything but the bases'
 * values and the id, which `verifyProfile` recomputes; a basis row is checked for NaN and Inf as it is read.
 * Throws KVTC_FILE_NOT_FOUND, KVTC_PROFILE_MALFORMED, KVTC_PROFILE_VERSION.
 */
export async function openProfile(path: string): Promise<Profile> {
  const file = await openForReading(path);
  try {
    return await readProfile(file, path);
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Reads the whole file and compares its id with the sha256 of the model's text and all tensor data, and every basis
 * value with what is allowed. Throws KVTC_PROFILE_MALFORMED, and what `openProfile` throws.
 */
export async function verifyProfile(path: string): Promise<void> {
  const profile = await openProfile(path);
  const file = await openForReading(path);
  try {
    const header = await readHeader(file, path);
    const id = createHash('sha256').update(modelDigestText(header, path));
    await eachDataBlock(file, header, path, (bytes) => id.update(bytes));
    const digest = id.digest('hex');
    if (digest !== profile.id) {
      throw malformed(path, `its contents hash to ${digest}, its id says ${profile.id}`, {
        got: digest,
        expected: profile.id,
      });
    }
    for (const stream of STREAMS) {
      const { analysis, synthesis } = profile.stream(stream);
      await readWhole(synthesis);
      if ('read' in analysis && analysis !== synthesis) await readWhole(analysis);
    }
  } finally {
    await file.close();
    await profile.close();
  }
}

/** Opens a file for reading. Throws KVTC_FILE_NOT_FOUND where there is none to read. */
export async function openForReading(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (error) {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open the profile ${path}`, { path }, { cause: error });
  }
}

/** Hands over all tensor data of a file in order, a few MB at a time; `bytes` is reused. */
export async function eachDataBlock(
  file: FileHandle,
  header: SafetensorsHeader,
  path: string,
  take: (bytes: Uint8Array, offsetBytes: number) => unknown,
): Promise<void> {
  const buffer = Buffer.alloc(COPY_BYTES);
  for (let offset = header.dataOffsetBytes; offset < header.fileBytes; offset += COPY_BYTES) {
    const bytes = buffer.subarray(0, Math.min(COPY_BYTES, header.fileBytes - offset));
    await readExactly(file, bytes, offset, path);
    await take(bytes, offset - header.dataOffsetBytes);
  }
}

/** What the id's hash starts with: the model's stored text and a line feed. */
function modelDigestText(header: SafetensorsHeader, path: string): string {
  return `${part(header, 'model', path)}\n`;
}

async function readProfile(file: FileHandle, path: string): Promise<Profile> {
  const header = await readHeader(file, path);
  const version = versionOf(header, path);
  const id = part(header, 'id', path);
  if (!/^[0-9a-f]{64}$/u.test(id)) throw malformed(path, 'its id is not 64 hex digits');
  const model = parseJson(part(header, 'model', path), modelSchema, path, 'model');
  const provenance = parseJson(part(header, 'provenance', path), provenanceSchema, path, 'provenance');
  const quality = parseJson(part(header, 'quality', path), qualitySchema, path, 'quality');
  const common = { path, id, model, provenance, quality, byteLength: header.fileBytes, close: () => file.close() };
  const parts =
    version === PROFILE_VERSIONS['kvtc-paper']
      ? await readPaperParts(file, header, model, path)
      : await readWtcParts(file, header, model, path, version === PROFILE_VERSIONS.tokenMeans);
  return { ...common, ...parts };
}

type PaperParts = Pick<PaperProfile, 'codec' | 'rank' | 'plans' | 'stream'>;

async function readPaperParts(
  file: FileHandle,
  header: SafetensorsHeader,
  model: ModelIdentity,
  path: string,
): Promise<PaperParts> {
  const rank = { key: basisRank(header, model, 'key', path), value: basisRank(header, model, 'value', path) };
  const plans = unfilePlans(parseJson(part(header, 'plans', path), plansSchema, path, 'plans'));
  const problem = plansProblem(plans, rank);
  if (problem !== null) throw malformed(path, problem);
  const streams = {
    key: await readStream(file, header, 'key', rank.key, streamWidth(model.geometry, 'key'), path),
    value: await readStream(file, header, 'value', rank.value, streamWidth(model.geometry, 'value'), path),
  };
  return { codec: 'kvtc-paper', rank, plans, stream: (stream) => streams[stream] };
}

/** A known format version, and the codec that it is of. Throws KVTC_PROFILE_VERSION, KVTC_PROFILE_MALFORMED. */
function versionOf(header: SafetensorsHeader, path: string): number {
  const format = header.metadata.get('format');
  if (format !== PROFILE_FORMAT) {
    throw malformed(path, `its format is ${format ?? 'missing'}, expected ${PROFILE_FORMAT}`);
  }
  const version = parseJson(part(header, 'version', path), z.int().positive(), path, 'version');
  const known: readonly number[] = Object.values(PROFILE_VERSIONS);
  if (!known.includes(version)) {
    throw new KvtcError(
      'KVTC_PROFILE_VERSION',
      `profile ${path} has format version ${version}, this build reads ${known.join(', ')}`,
      { path, got: version, expected: known.join(', ') },
    );
  }
  if (version === PROFILE_VERSIONS['kvtc-paper']) return version;
  const codec = part(header, 'codec', path);
  if (codec !== 'wtc') throw malformed(path, `its codec is ${codec}; version ${version} knows wtc`, { got: codec });
  return version;
}

function basisRank(header: SafetensorsHeader, model: ModelIdentity, stream: StreamKind, path: string): number {
  const rank = header.tensors.get(`${stream}.basis`)?.shape[0] ?? 0;
  const width = streamWidth(model.geometry, stream);
  if (rank < RANK_STEP || rank % RANK_STEP !== 0 || rank > width) {
    throw malformed(path, `${stream}.basis has rank ${rank}, expected a multiple of ${RANK_STEP} up to ${width}`, {
      stream,
      rank,
      width,
    });
  }
  return rank;
}

async function readStream(
  file: FileHandle,
  header: SafetensorsHeader,
  stream: StreamKind,
  rank: number,
  width: number,
  path: string,
): Promise<StreamTransform> {
  const entry = tensor(header, `${stream}.basis`, 'F16', [rank, width], path);
  const mean = await readVector(file, tensor(header, `${stream}.mean`, 'F32', [width], path), `${stream}.mean`, path);
  const variancesName = `${stream}.variances`;
  const variances = await readVector(file, tensor(header, variancesName, 'F32', [rank], path), variancesName, path);
  const unordered = variances.findIndex((value, i) => value < 0 || (i > 0 && value > (variances[i - 1] as number)));
  if (unordered >= 0) {
    throw malformed(path, `${stream}.variances[${unordered}] is negative or larger than the one before`, {
      tensor: `${stream}.variances`,
      index: unordered,
    });
  }
  const basis: MatrixSource = {
    rows: rank,
    columns: width,
    read: async (startRow, endRow, out) => {
      invariant(startRow >= 0 && startRow <= endRow && endRow <= rank, `basis rows [${startRow}, ${endRow})`);
      const values = (endRow - startRow) * width;
      invariant(out.length >= values, `room for ${out.length} basis values, ${values} asked for`);
      // Into the upper half of their own place: decoding from the front never overtakes what it still has to read.
      const halves = new Uint16Array(out.buffer, out.byteOffset + 2 * values, values);
      const bytes = new Uint8Array(out.buffer, halves.byteOffset, 2 * values);
      await readExactly(file, bytes, entry.offsetBytes + startRow * width * 2, path);
      checkFiniteHalves(halves, startRow, width, `${stream}.basis`, path);
      decodeF16(halves, out);
    },
  };
  return { mean, variances, analysis: basis, synthesis: basis };
}

function checkFiniteHalves(halves: Uint16Array, startRow: number, width: number, name: string, path: string): void {
  for (let i = 0; i < halves.length; i++) {
    if ((halves[i]! & 0x7c00) === 0x7c00) {
      const row = startRow + Math.floor(i / width);
      throw malformed(path, `${name}[${row}, ${i % width}] is not finite`, { tensor: name, row, column: i % width });
    }
  }
}

async function readWhole(matrix: MatrixSource): Promise<void> {
  const rows = Math.max(1, Math.floor(COPY_BYTES / (2 * matrix.columns)));
  const scratch = new Float32Array(rows * matrix.columns);
  for (let row = 0; row < matrix.rows; row += rows) await matrix.read(row, Math.min(row + rows, matrix.rows), scratch);
}
