// The parts of a profile that only wtc has: scales, coding tables, matrices of int8 with a scale per row and head, steps,
// token predictor. File layout: docs/format/profile.md. Does not know containers or how a profile came about.

import type { FileHandle } from 'node:fs/promises';
import { invariant } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, headDim, streamWidth } from '../base/geometry.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import { SCALE_INDEX_LIMIT, SCALE_UNITS } from '../codec/wtc/classes.ts';
import { FAMILY_VALUES, unpackFamily } from '../codec/wtc/family.ts';
import type { StreamTables } from '../codec/wtc/plan.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import { triangleSize } from '../linalg/dense.ts';
import type { HeadMetric, ModelIdentity, StreamTransform, TokenMeans, TokenPredictor, WtcProfile } from './profile.ts';
import type { SafetensorsHeader } from './safetensors.ts';
import { malformed, parseJson, readExactly } from './safetensors.ts';
import { stepsProblem, stepsSchema } from './schema.ts';
import { part, readVector, tensor } from './tensors.ts';
import { tuningSchema } from './tuning.ts';

/** Features per leading component and stream, and how many more: see docs/format/profile.md. */
const FEATURES_PER_COMPONENT = 4;
const FURTHER_FEATURES = 3;

type WtcParts = Pick<
  WtcProfile,
  'codec' | 'rank' | 'tables' | 'steps' | 'predictor' | 'tokenMeans' | 'tuning' | 'stream'
>;

/**
 * Reads and checks all of it but the matrices, which are served by ranges. `withTokenMeans`: they must be there (version
 * 3), or are not looked for. Throws KVTC_PROFILE_MALFORMED.
 */
export async function readWtcParts(
  file: FileHandle,
  header: SafetensorsHeader,
  model: ModelIdentity,
  path: string,
  withTokenMeans: boolean,
): Promise<WtcParts> {
  const key = await readWtcStream(file, header, model, 'key', path);
  const value = await readWtcStream(file, header, model, 'value', path);
  const rank = { key: key.tables.scales.length, value: value.tables.scales.length };
  const steps = parseJson(part(header, 'steps', path), stepsSchema, path, 'steps');
  const problem = stepsProblem(steps, rank);
  if (problem !== null) throw malformed(path, problem);
  const tuning = header.metadata.get('tuning');
  return {
    codec: 'wtc',
    rank,
    tables: { key: key.tables, value: value.tables },
    steps,
    predictor: await readPredictor(file, header, rank, path),
    tokenMeans: withTokenMeans ? await readTokenMeans(file, header, rank, path) : null,
    tuning: tuning === undefined ? null : parseJson(tuning, tuningSchema, path, 'tuning'),
    stream: (stream) => (stream === 'key' ? key : value).transform,
  };
}

async function readWtcStream(
  file: FileHandle,
  header: SafetensorsHeader,
  model: ModelIdentity,
  stream: StreamKind,
  path: string,
): Promise<{ readonly transform: StreamTransform; readonly tables: StreamTables }> {
  const width = streamWidth(model.geometry, stream);
  const rank = header.tensors.get(`${stream}.scales`)?.shape[0] ?? 0;
  if (rank < RANK_STEP || rank % RANK_STEP !== 0 || rank > width) {
    throw malformed(path, `${stream}.scales has rank ${rank}, expected a multiple of ${RANK_STEP} up to ${width}`, {
      stream,
      rank,
      width,
    });
  }
  const mean = await readVector(file, tensor(header, `${stream}.mean`, 'F32', [width], path), `${stream}.mean`, path);
  const scales = new Int16Array(rank);
  const entry = tensor(header, `${stream}.scales`, 'I16', [rank], path);
  await readExactly(file, new Uint8Array(scales.buffer), entry.offsetBytes, path);
  const wrong = scales.findIndex(
    (scale, i) => Math.abs(scale) > SCALE_INDEX_LIMIT || (i > 0 && scale > (scales[i - 1] as number)),
  );
  if (wrong >= 0) {
    throw malformed(path, `${stream}.scales[${wrong}] is out of range or larger than the one before`, {
      tensor: `${stream}.scales`,
      index: wrong,
    });
  }
  const name = `${stream}.tables`;
  const packed = await readVector(file, tensor(header, name, 'F32', [FAMILY_VALUES], path), name, path);
  const dim = headDim(model.geometry, stream);
  const matrix = (what: 'analysis' | 'synthesis'): Promise<MatrixSource> =>
    int8Matrix(file, header, `${stream}.${what}`, rank, width, dim, path);
  const synthesis = await matrix('synthesis');
  // Profiles before the metric stored the analysis.
  const analysis = header.tensors.has(`${stream}.analysis`)
    ? await matrix('analysis')
    : await readMetric(file, header, stream, { heads: width / dim, headDim: dim }, path);
  const variances = Float32Array.from(scales, (scale) => 2 ** ((2 * scale) / SCALE_UNITS));
  return {
    transform: { mean, variances, analysis: analysis ?? synthesis, synthesis },
    tables: { scales, family: unpackFamily(packed, name) },
  };
}

async function readMetric(
  file: FileHandle,
  header: SafetensorsHeader,
  stream: StreamKind,
  { heads, headDim }: Pick<HeadMetric, 'heads' | 'headDim'>,
  path: string,
): Promise<HeadMetric | null> {
  const name = `${stream}.metric`;
  if (!header.tensors.has(name)) return null;
  const entry = tensor(header, name, 'F32', [heads, triangleSize(headDim)], path);
  return { heads, headDim, packed: await readVector(file, entry, name, path) };
}

/** value = integer · scale of its row and of its block of `dim` columns. Scales (a few hundred KB) are read at once, rows when asked for. */
async function int8Matrix(
  file: FileHandle,
  header: SafetensorsHeader,
  name: string,
  rank: number,
  width: number,
  dim: number,
  path: string,
): Promise<MatrixSource> {
  const entry = tensor(header, name, 'I8', [rank, width], path);
  const heads = width / dim;
  const scalesName = `${name}.scales`;
  const scales = await readVector(file, tensor(header, scalesName, 'F32', [rank, heads], path), scalesName, path);
  return {
    rows: rank,
    columns: width,
    read: async (startRow, endRow, out) => {
      invariant(startRow >= 0 && startRow <= endRow && endRow <= rank, `matrix rows [${startRow}, ${endRow})`);
      const count = (endRow - startRow) * width;
      invariant(out.length >= count, `room for ${out.length} matrix values, ${count} asked for`);
      const integers = new Int8Array(count);
      await readExactly(file, new Uint8Array(integers.buffer), entry.offsetBytes + startRow * width, path);
      for (let block = 0, at = 0; at < count; block++) {
        const scale = scales[startRow * heads + block]!;
        for (const end = at + dim; at < end; at++) out[at] = integers[at]! * scale;
      }
    },
  };
}

async function readPredictor(
  file: FileHandle,
  header: SafetensorsHeader,
  rank: Readonly<Record<StreamKind, number>>,
  path: string,
): Promise<TokenPredictor | null> {
  const components = header.tensors.get('key.predictor.deviations')?.shape[0];
  if (components === undefined) return null;
  if (components < 1 || components > Math.min(rank.key, rank.value)) {
    throw malformed(path, `its token predictor looks at ${components} components, the ranks are lower`);
  }
  const fewest = FEATURES_PER_COMPONENT * components + FURTHER_FEATURES;
  const recency = header.tensors.get('key.predictor.weights')?.shape[0] === fewest + 1;
  const vectors = async (what: string, length: number): Promise<Record<StreamKind, Float32Array>> => {
    const read = (name: string): Promise<Float32Array> =>
      readVector(file, tensor(header, name, 'F32', [length], path), name, path);
    return { key: await read(`key.predictor.${what}`), value: await read(`value.predictor.${what}`) };
  };
  const deviations = await vectors('deviations', components);
  for (const stream of STREAMS) {
    if (!deviations[stream].every((deviation) => deviation >= 0)) {
      throw malformed(path, `a deviation of ${stream}.predictor is negative`);
    }
  }
  return { components, recency, deviations, weights: await vectors('weights', fewest + (recency ? 1 : 0)) };
}

/** More than any model's embedding has, small enough that no product overflows. */
const MAX_EMBEDDING_WIDTH = 65_536;
const MAX_FEATURES = 4096;

async function readTokenMeans(
  file: FileHandle,
  header: SafetensorsHeader,
  rank: Readonly<Record<StreamKind, number>>,
  path: string,
): Promise<TokenMeans> {
  const [dims = 0, doubled = 0] = header.tensors.get('token.features')?.shape ?? [];
  if (dims < 1 || dims > MAX_FEATURES || doubled < 2 || doubled % 2 !== 0 || doubled > 2 * MAX_EMBEDDING_WIDTH) {
    throw malformed(path, `token.features is [${dims}, ${doubled}], expected [dims, 2 · embedding]`, { dims, doubled });
  }
  const expected = async (stream: StreamKind): Promise<MatrixSource> => {
    const name = `${stream}.expected`;
    const rows = header.tensors.get(name)?.shape[0] ?? 0;
    if (rows < 1 || rows > rank[stream]) {
      throw malformed(path, `${name} has ${rows} rows, expected 1 to ${rank[stream]}`, { stream, rows });
    }
    return int8Matrix(file, header, name, rows, dims, dims, path);
  };
  const offsets = tensor(header, 'token.offsets', 'F32', [dims], path);
  return {
    dims,
    width: doubled / 2,
    features: await int8Matrix(file, header, 'token.features', dims, doubled, doubled, path),
    offsets: await readVector(file, offsets, 'token.offsets', path),
    expected: { key: await expected('key'), value: await expected('value') },
  };
}
