// Writing a profile file as a whole, and rewriting one with more plans or quality points. Streams: a basis is never
// whole in memory. File layout: docs/format/profile.md. Does not know how a profile came about.

import { createHash } from 'node:crypto';
import { replaceFile, writeFully } from '../base/atomic-file.ts';
import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS, streamWidth } from '../base/geometry.ts';
import { encodeF16 } from '../base/half.ts';
import { RANK_STEP } from '../codec/paper/plan.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import { TENSOR_NAMES, eachDataBlock, openForReading, openProfile } from './open-profile.ts';
import type { ModelIdentity, Provenance, QualityPoint, RatioPlans, StepPoint, StreamBasis } from './profile.ts';
import type { TensorShape } from './safetensors.ts';
import { headerPrefix, readHeader } from './safetensors.ts';
import {
  PROFILE_FORMAT,
  PROFILE_VERSIONS,
  canonicalModel,
  filePlans,
  modelSchema,
  plansProblem,
  provenanceSchema,
  qualitySchema,
  stepsProblem,
} from './schema.ts';
import type { TuningRecord } from './tuning.ts';
import { tuningSchema } from './tuning.ts';

/** Everything a profile of the paper's codec holds. Basis rows are rounded to f16, to nearest. */
export interface ProfileContents {
  readonly model: ModelIdentity;
  readonly streams: Readonly<Record<StreamKind, StreamBasis>>;
  readonly plans: readonly RatioPlans[];
  readonly provenance: Provenance;
  readonly quality: readonly QualityPoint[];
}

/** What may change in a finished profile without changing its id. */
export interface ProfileChanges {
  /** Of the paper's codec only. */
  readonly plans?: readonly RatioPlans[] | undefined;
  /** Of wtc only. */
  readonly steps?: readonly StepPoint[] | undefined;
  /** Of wtc only. */
  readonly tuning?: TuningRecord | undefined;
  readonly quality?: readonly QualityPoint[] | undefined;
}

/** Values of a basis converted at a time. */
const BLOCK_VALUES = 1 << 20;
export const ID_PLACEHOLDER = '0'.repeat(64);

/**
 * Writes a profile and returns its id. The file appears whole or not at all (`.part`, sync, rename); one that was there
 * is replaced. Same contents → same bytes. Plans are sorted by ratio.
 * Throws KVTC_OPTION_INVALID for contents that `openProfile` would refuse, KVTC_WRITE_FAILED.
 */
export async function writeProfile(path: string, contents: ProfileContents): Promise<string> {
  const { model, streams, provenance } = contents;
  const shapes = checkStreams(contents);
  const modelText = canonicalModel(model);
  const metadata = {
    format: PROFILE_FORMAT,
    version: String(PROFILE_VERSIONS['kvtc-paper']),
    id: ID_PLACEHOLDER,
    model: modelText,
    provenance: JSON.stringify(provenance),
    ...changeableParts(contents, { key: streams.key.basis.rows, value: streams.value.basis.rows }),
  };
  return writeHashed(path, metadata, shapes, modelText, () => tensorData(streams));
}

/**
 * Writes header and tensor data, filling in the id, which it returns. `metadata.id` must be ID_PLACEHOLDER; data must
 * cover the shapes in order. Throws KVTC_WRITE_FAILED.
 */
export async function writeHashed(
  path: string,
  metadata: Readonly<Record<string, string>>,
  shapes: readonly (TensorShape & { readonly name: string })[],
  modelText: string,
  data: () => AsyncIterable<Uint8Array>,
): Promise<string> {
  const prefix = headerPrefix(metadata, shapes);
  const hash = createHash('sha256').update(`${modelText}\n`);
  let id = '';
  await replaceFile(path, async (file) => {
    let offset = prefix.length;
    for await (const bytes of data()) {
      hash.update(bytes);
      await writeFully(file, bytes, offset);
      offset += bytes.length;
    }
    // The id is known only now; it has the placeholder's length, so the header keeps its size.
    id = hash.digest('hex');
    await writeFully(file, headerPrefix({ ...metadata, id }, shapes), 0);
  });
  return id;
}

/**
 * Replaces the plans, the steps, the tuning or the quality points of a profile file, which keeps its id and its tensors. Lists are replaced
 * whole: pass `[...profile.quality, point]` to add one. Handles opened before go on reading the old file.
 * Throws KVTC_OPTION_INVALID, KVTC_WRITE_FAILED, and what `openProfile` throws.
 */
export async function rewriteProfile(path: string, changes: ProfileChanges): Promise<void> {
  const profile = await openProfile(path);
  const source = await openForReading(path);
  try {
    const header = await readHeader(source, path);
    if (changes[profile.codec === 'wtc' ? 'plans' : 'steps'] !== undefined) {
      throw invalid(`profile ${path} is for ${profile.codec}, which has no such list`);
    }
    if (changes.tuning !== undefined && profile.codec !== 'wtc') throw invalid(`${profile.codec} has nothing to tune`);
    const quality = changes.quality ?? profile.quality;
    const parts =
      profile.codec === 'wtc'
        ? changeableSteps({ steps: changes.steps ?? profile.steps, quality }, profile.rank)
        : changeableParts({ plans: changes.plans ?? profile.plans, quality }, profile.rank);
    const tensors = [...header.tensors]
      .sort(([, a], [, b]) => a.offsetBytes - b.offsetBytes)
      .map(([name, { type, shape }]) => ({ name, type, shape }));
    const tuning = changes.tuning === undefined ? {} : { tuning: tuningText(changes.tuning) };
    const prefix = headerPrefix({ ...Object.fromEntries(header.metadata), ...parts, ...tuning }, tensors);
    await replaceFile(path, async (file) => {
      await writeFully(file, prefix, 0);
      await eachDataBlock(source, header, path, (bytes, offset) => writeFully(file, bytes, prefix.length + offset));
    });
  } finally {
    await source.close();
    await profile.close();
  }
}

function changeableParts(
  { plans, quality }: Pick<ProfileContents, 'plans' | 'quality'>,
  rank: Readonly<Record<StreamKind, number>>,
): { plans: string; quality: string } {
  const sorted = plans.toSorted((a, b) => a.ratio - b.ratio);
  const problem = plansProblem(sorted, rank);
  if (problem !== null) throw invalid(problem);
  return { plans: JSON.stringify(filePlans(sorted)), quality: qualityText(quality) };
}

/** The changeable metadata of a wtc profile. Throws KVTC_OPTION_INVALID. */
export function changeableSteps(
  { steps, quality }: { readonly steps: readonly StepPoint[]; readonly quality: readonly QualityPoint[] },
  rank: Readonly<Record<StreamKind, number>>,
): { steps: string; quality: string } {
  const sorted = steps.toSorted((a, b) => a.ratio - b.ratio);
  const problem = stepsProblem(sorted, rank);
  if (problem !== null) throw invalid(problem);
  return { steps: JSON.stringify(sorted), quality: qualityText(quality) };
}

function qualityText(quality: readonly QualityPoint[]): string {
  const checked = qualitySchema.safeParse(quality);
  if (!checked.success) throw invalid(`quality: ${checked.error.message}`);
  return JSON.stringify(quality);
}

function tuningText(tuning: TuningRecord): string {
  const checked = tuningSchema.safeParse(tuning);
  if (!checked.success) throw invalid(`tuning: ${checked.error.message}`);
  return JSON.stringify(tuning);
}

/** Throws KVTC_OPTION_INVALID for a model or provenance that no reader would take. */
export function checkIdentity({ model, provenance }: Pick<ProfileContents, 'model' | 'provenance'>): void {
  for (const [what, result] of [
    ['model', modelSchema.safeParse(model)],
    ['provenance', provenanceSchema.safeParse(provenance)],
  ] as const) {
    if (!result.success) throw invalid(`${what}: ${result.error.message}`);
  }
}

function checkStreams(contents: ProfileContents): (TensorShape & { name: string })[] {
  checkIdentity(contents);
  const { model, streams } = contents;
  for (const stream of STREAMS) {
    const { mean, variances, basis } = streams[stream];
    const width = streamWidth(model.geometry, stream);
    if (mean.length !== width || basis.columns !== width || variances.length !== basis.rows) {
      throw invalid(
        `${stream}: mean [${mean.length}], variances [${variances.length}] and basis [${basis.rows}, ${basis.columns}] do not fit width ${width}`,
      );
    }
    if (basis.rows < RANK_STEP || basis.rows % RANK_STEP !== 0 || basis.rows > width) {
      throw invalid(`${stream}: rank ${basis.rows} is not a multiple of ${RANK_STEP} up to ${width}`);
    }
    const falling = variances.every((value, i) => value >= 0 && (i === 0 || value <= (variances[i - 1] as number)));
    if (!falling || !mean.every(Number.isFinite) || !variances.every(Number.isFinite)) {
      throw invalid(`${stream}: mean and variances must be finite, variances falling and not negative`);
    }
  }
  return TENSOR_NAMES.map((name) => {
    const [stream, what] = name.split('.') as [StreamKind, 'mean' | 'variances' | 'basis'];
    const { basis } = streams[stream];
    if (what === 'basis') return { name, type: 'F16', shape: [basis.rows, basis.columns] };
    return { name, type: 'F32', shape: [what === 'mean' ? basis.columns : basis.rows] };
  });
}

async function* tensorData(streams: ProfileContents['streams']): AsyncGenerator<Uint8Array> {
  for (const name of TENSOR_NAMES) {
    const [stream, what] = name.split('.') as [StreamKind, 'mean' | 'variances' | 'basis'];
    if (what === 'basis') yield* basisData(streams[stream].basis, name);
    else {
      const values = streams[stream][what];
      yield new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    }
  }
}

async function* basisData(basis: MatrixSource, name: string): AsyncGenerator<Uint8Array> {
  const rows = Math.max(1, Math.floor(BLOCK_VALUES / basis.columns));
  for (let row = 0; row < basis.rows; row += rows) {
    const end = Math.min(row + rows, basis.rows);
    const values = new Float32Array((end - row) * basis.columns);
    await basis.read(row, end, values);
    // An orthonormal basis has no entry beyond 1; anything large is a fit gone wrong, and Inf must not reach a file.
    if (!values.every((value) => Math.abs(value) < 65_504)) throw invalid(`${name} holds values beyond f16`);
    const halves = new Uint16Array(values.length);
    encodeF16(values, halves);
    yield new Uint8Array(halves.buffer);
  }
}

export function invalid(problem: string): KvtcError {
  return new KvtcError('KVTC_OPTION_INVALID', `cannot write this profile: ${problem}`);
}
