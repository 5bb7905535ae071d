// Writing a wtc profile: matrices rounded to int8 with a scale per row and head. File layout: docs/format/profile.md.
// Does not know how a profile came about.

import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim, streamWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { packFamily } from '../codec/wtc/family.ts';
import type { StreamTables } from '../codec/wtc/plan.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import { triangleSize } from '../linalg/dense.ts';
import type {
  HeadMetric,
  ModelIdentity,
  Provenance,
  QualityPoint,
  StepPoint,
  TokenMeans,
  TokenPredictor,
} from './profile.ts';
import type { TensorShape } from './safetensors.ts';
import { PROFILE_FORMAT, PROFILE_VERSIONS, canonicalModel } from './schema.ts';
import { ID_PLACEHOLDER, changeableSteps, checkIdentity, invalid, writeHashed } from './write-profile.ts';

/** One stream of a wtc profile, before its matrices are rounded. */
export interface WtcStream extends StreamTables {
  /** f32[p] */
  readonly mean: Float32Array;
  /** [rank, p] */
  readonly synthesis: MatrixSource;
  /** What the analysis follows from; null where the synthesis is orthonormal and serves as both. */
  readonly metric: HeadMetric | null;
}

export interface WtcContents {
  readonly model: ModelIdentity;
  readonly streams: Readonly<Record<StreamKind, WtcStream>>;
  readonly steps: readonly StepPoint[];
  readonly predictor: TokenPredictor | null;
  readonly tokenMeans: TokenMeans | null;
  readonly provenance: Provenance;
  readonly quality: readonly QualityPoint[];
}

interface PlannedTensor extends TensorShape {
  readonly name: string;
  readonly data: () => AsyncIterable<Uint8Array> | readonly Uint8Array[];
}

/**
 * Writes a wtc profile and returns its id; the file appears whole or not at all. Same contents → same bytes.
 * Throws KVTC_OPTION_INVALID for contents that `openProfile` would refuse, KVTC_WRITE_FAILED.
 */
export async function writeWtcProfile(path: string, contents: WtcContents): Promise<string> {
  checkIdentity(contents);
  const { model, provenance } = contents;
  const rank = { key: contents.streams.key.scales.length, value: contents.streams.value.scales.length };
  const modelText = canonicalModel(model);
  const metadata = {
    format: PROFILE_FORMAT,
    version: String(contents.tokenMeans === null ? PROFILE_VERSIONS.wtc : PROFILE_VERSIONS.tokenMeans),
    codec: 'wtc',
    id: ID_PLACEHOLDER,
    model: modelText,
    provenance: JSON.stringify(provenance),
    ...changeableSteps(contents, rank),
  };
  const tensors = plannedTensors(contents);
  return writeHashed(path, metadata, tensors, modelText, async function* () {
    for (const { data } of tensors) yield* data();
  });
}

/** Small tensors first, each at a multiple of 4 bytes as long as rank and width allow. */
function plannedTensors({ model, streams, predictor, tokenMeans }: WtcContents): PlannedTensor[] {
  const small: PlannedTensor[] = [];
  const large: PlannedTensor[] = [];
  const floats = (name: string, values: Float32Array): PlannedTensor => {
    if (!values.every(Number.isFinite)) throw invalid(`${name} holds NaN or Inf`);
    return { name, type: 'F32', shape: [values.length], data: () => [bytesOf(values)] };
  };
  const rounded = (name: string, matrix: MatrixSource, dim: number): PlannedTensor[] => {
    const { rows, columns } = matrix;
    const data = (what: 'scales' | 'integers') => () => roundedRows(matrix, dim, what, name);
    return [
      { name: `${name}.scales`, type: 'F32', shape: [rows, columns / dim], data: data('scales') },
      { name, type: 'I8', shape: [rows, columns], data: data('integers') },
    ];
  };
  if (tokenMeans !== null) {
    const { dims, width, features, offsets } = tokenMeans;
    if (features.rows !== dims || features.columns !== 2 * width || offsets.length !== dims) {
      throw invalid(`token features are [${features.rows}, ${features.columns}], expected [${dims}, ${2 * width}]`);
    }
    large.push(floats('token.offsets', offsets), ...rounded('token.features', features, features.columns));
  }
  for (const stream of STREAMS) {
    const { mean, scales, family, metric, synthesis } = streams[stream];
    const width = streamWidth(model.geometry, stream);
    const rank = scales.length;
    if (mean.length !== width || rank < RANK_STEP || rank % RANK_STEP !== 0 || rank > width) {
      throw invalid(`${stream}: mean [${mean.length}] and rank ${rank} do not fit width ${width}`);
    }
    small.push(floats(`${stream}.mean`, mean), floats(`${stream}.tables`, packFamily(family)));
    small.push({ name: `${stream}.scales`, type: 'I16', shape: [rank], data: () => [bytesOf(scales)] });
    if (predictor !== null) {
      small.push(floats(`${stream}.predictor.deviations`, predictor.deviations[stream]));
      small.push(floats(`${stream}.predictor.weights`, predictor.weights[stream]));
    }
    if (synthesis.rows !== rank || synthesis.columns !== width) {
      throw invalid(`${stream}: synthesis is [${synthesis.rows}, ${synthesis.columns}], expected [${rank}, ${width}]`);
    }
    const dim = headDim(model.geometry, stream);
    const shape = [width / dim, triangleSize(dim)];
    if (metric !== null) {
      if (metric.packed.length !== shape[0]! * shape[1]!) {
        throw invalid(`${stream}: a metric of ${metric.packed.length} values, expected [${shape.join(', ')}]`);
      }
      large.push({ ...floats(`${stream}.metric`, metric.packed), shape });
    }
    if (tokenMeans !== null) {
      const expected = tokenMeans.expected[stream];
      if (expected.rows > rank || expected.columns !== tokenMeans.dims) {
        const found = `[${expected.rows}, ${expected.columns}]`;
        throw invalid(`${stream}: expected is ${found}, expected at most [${rank}, ${tokenMeans.dims}]`);
      }
      large.push(...rounded(`${stream}.expected`, expected, expected.columns));
    }
    large.push(...rounded(`${stream}.synthesis`, synthesis, dim));
  }
  return [...small, ...large];
}

/** One of the two tensors of a rounded matrix, row by row. */
async function* roundedRows(
  matrix: MatrixSource,
  dim: number,
  what: 'integers' | 'scales',
  name: string,
): AsyncGenerator<Uint8Array> {
  const row = new Float32Array(matrix.columns);
  for (let r = 0; r < matrix.rows; r++) {
    await matrix.read(r, r + 1, row);
    const { integers, scales } = roundToInt8(row, dim);
    if (!scales.every(Number.isFinite)) throw invalid(`${name} holds NaN or Inf in row ${r}`);
    yield bytesOf(what === 'integers' ? integers : scales);
  }
}

/** Integers −127 to 127 and the f32 scale of every block of `dim` values: value ≈ integer · scale. */
function roundToInt8(row: Float32Array, dim: number): { integers: Int8Array; scales: Float32Array } {
  const integers = new Int8Array(row.length);
  const scales = new Float32Array(row.length / dim);
  for (let block = 0; block < scales.length; block++) {
    let most = 0;
    for (let i = block * dim; i < (block + 1) * dim; i++) most = Math.max(most, Math.abs(row[i]!));
    const scale = Math.fround(most / 127);
    scales[block] = scale;
    if (scale === 0) continue;
    for (let i = block * dim; i < (block + 1) * dim; i++) integers[i] = Math.round(row[i]! / scale);
  }
  return { integers, scales };
}

function bytesOf(values: Float32Array | Int16Array | Int8Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
