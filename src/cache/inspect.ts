// What a file is and where its bytes go: container, profile or GGUF, every byte in a named part, parts sum to the file.
// Reads headers and indexes only; `verify` in the same file reads everything.

import { open } from 'node:fs/promises';
import { KvtcError, invariant, isKvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { STREAMS, elementBytes, streamWidth, type TokenRange } from '../base/geometry.ts';
import { containerRatios, type Ratios } from '../codec/accounting.ts';
import { openContainer, verifyContainer } from '../container/reader.ts';
import type { Container, ContainerHeader, ContainerPart } from '../container/types.ts';
import { MAGIC } from '../container/format.ts';
import { modelIdentity } from '../engines/llama/architecture.ts';
import { describeGguf } from '../engines/llama/gguf.ts';
import { openProfile, verifyProfile } from '../profile/open-profile.ts';
import type { ModelIdentity, Profile, Provenance, StepPoint, WtcProfile } from '../profile/profile.ts';
import type { SafetensorsHeader } from '../profile/safetensors.ts';
import { readHeader } from '../profile/safetensors.ts';

/** Bytes of a file under one name; `count` pieces of it lie there, not always side by side. */
export interface InspectedPart {
  readonly name: string;
  readonly byteLength: number;
  readonly count: number;
}

interface InspectedFile {
  readonly path: string;
  readonly byteLength: number;
  /** In file order of their first piece; lengths sum to `byteLength`. */
  readonly parts: readonly InspectedPart[];
}

export interface InspectedContainer extends InspectedFile, Ratios {
  readonly kind: 'container';
  readonly version: string;
  readonly header: ContainerHeader;
  readonly hasTokens: boolean;
  readonly chunkCount: number;
  /** The cache's rows at the engine's element types. */
  readonly rawBytes: number;
}

/** What a profile adds to a model, counted as the paper does: stored values of matrices against parameters. */
export interface ProfileSize {
  /** Values of all bases, syntheses and analyses, one byte each for wtc and two for the paper's codec. */
  readonly matrixEntries: number;
  /** That over the model's parameters; null where the profile does not know them. */
  readonly parameterShare: number | null;
}

export interface InspectedProfile
  extends ProfileSize, InspectedFile, Pick<Profile, 'id' | 'model' | 'rank' | 'provenance' | 'quality'> {
  readonly kind: 'profile';
  readonly codec: Profile['codec'];
  /** Of the paper's codec. */
  readonly plans: readonly {
    readonly ratio: number;
    readonly keyRank: number;
    readonly valueRank: number;
    readonly keyGroups: number;
    readonly valueGroups: number;
    readonly keyError: number;
    readonly valueError: number;
  }[];
  /** Of wtc. */
  readonly steps: readonly StepPoint[];
  /** Of wtc: how its steps were chosen by measured loss; null where they never were. */
  readonly tuning: WtcProfile['tuning'];
  /** Of wtc: features by which token ids tell part of a token; the model's file is then needed to code and to restore. */
  readonly tokenFeatures: number | null;
}

export interface InspectedGguf extends InspectedFile {
  readonly kind: 'gguf';
  readonly version: string;
  readonly tensorCount: number;
  readonly metadataCount: number;
  /** Null for a model whose cache kvtc does not code; `refusal` then says why. */
  readonly model: ModelIdentity | null;
  readonly refusal: string | null;
}

export type Inspection = InspectedContainer | InspectedProfile | InspectedGguf;

export type FileKind = Inspection['kind'];

/**
 * Tells a file's kind by its first bytes. Throws KVTC_FILE_NOT_FOUND, KVTC_CONTAINER_MAGIC when it is none of ours.
 */
async function fileKind(path: string): Promise<FileKind> {
  const file = await open(path, 'r').catch((error: unknown) => {
    throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot open ${path}`, { path }, { cause: error });
  });
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(9), 0, 9, 0).catch((error: unknown) => {
      throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read ${path}`, { path }, { cause: error });
    });
    const start = buffer.subarray(0, bytesRead);
    // A broken container is still taken for one as long as half its magic stands, so that the reader can name the damage.
    if (start.subarray(0, 4).equals(MAGIC.subarray(0, 4))) return 'container';
    if (start.subarray(0, 4).toString('latin1') === 'GGUF') return 'gguf';
    if (bytesRead === 9 && start[8] === 0x7b && start.readUInt32LE(4) === 0) return 'profile';
  } finally {
    await file.close();
  }
  const message = `${path} is neither a .kvtc container nor a profile nor a GGUF model`;
  throw new KvtcError('KVTC_CONTAINER_MAGIC', message, { path });
}

/**
 * Describes a container, a profile or a GGUF file from its headers and indexes. Throws KVTC_FILE_NOT_FOUND,
 * KVTC_CONTAINER_*, KVTC_PROFILE_*, KVTC_GGUF_MALFORMED.
 */
export async function inspect(path: string): Promise<Inspection> {
  const kind = await fileKind(path);
  if (kind === 'container') return inspectContainer(path);
  return kind === 'profile' ? inspectProfile(path) : inspectGguf(path);
}

/**
 * Reads every byte of a container or profile and checks every checksum; of a GGUF file its metadata and tensor directory
 * (the format has no checksums). Throws what `inspect` throws, KVTC_ABORTED.
 */
export async function verify(
  path: string,
  options: Pick<RunOptions, 'signal'> = {},
): Promise<{ readonly kind: FileKind }> {
  const kind = await fileKind(path);
  if (kind === 'container') await verifyContainer(path, options.signal === undefined ? {} : { signal: options.signal });
  else if (kind === 'profile') await verifyProfile(path);
  else await inspectGguf(path);
  return { kind };
}

async function inspectContainer(path: string): Promise<InspectedContainer> {
  const container = await openContainer(path);
  try {
    const { header, version, byteLength, tokens, chunks } = container;
    const parts = container.parts();
    const { geometry } = header.model;
    const rawBytes = STREAMS.reduce(
      (sum, stream) =>
        sum + elementBytes(header.elementTypes[stream], streamWidth(geometry, stream)) * header.tokenCount,
      0,
    );
    const ratios = containerRatios({
      valuesPerToken: streamWidth(geometry, 'key') + streamWidth(geometry, 'value'),
      tokenCount: header.tokenCount,
      sinks: sinkTokens(header),
      exactRanges: header.exactRanges,
      parts,
      rawBytes,
      byteLength,
    });
    return {
      kind: 'container',
      path,
      byteLength,
      version: `${version.major}.${version.minor}`,
      header,
      hasTokens: tokens !== null,
      chunkCount: chunks.length,
      rawBytes,
      ...ratios,
      parts: checked(groupParts(container, parts), byteLength),
    };
  } finally {
    await container.close();
  }
}

/** The first exact range where it begins the sequence and does not also end it; the file does not keep the setting. */
function sinkTokens(header: ContainerHeader): number {
  const first = header.exactRanges[0];
  return first?.startToken === 0 && first.endToken < header.tokenCount ? first.endToken : 0;
}

function groupParts(container: Container, parts: readonly ContainerPart[]): InspectedPart[] {
  const { tokenCount, exactRanges } = container.header;
  const place = (tokens: TokenRange | undefined): string => {
    if (tokens?.startToken === 0) return 'exact rows at the start';
    return tokens?.endToken === tokenCount && exactRanges.length > 0 ? 'exact rows at the end' : 'exact rows within';
  };
  const groups = new Map<string, { byteLength: number; count: number }>();
  for (const part of parts) {
    const stream = part.stream === undefined ? '' : `, ${part.stream}s`;
    const kind = part.kind === 'exact-rows' ? place(part.tokens) : part.kind === 'chunk' ? 'chunks' : part.kind;
    const name = `${kind.replaceAll('-', ' ')}${stream}`;
    const group = groups.get(name) ?? { byteLength: 0, count: 0 };
    groups.set(name, group);
    group.byteLength += part.byteLength;
    group.count += 1;
  }
  return [...groups].map(([name, group]) => ({ name, ...group }));
}

async function inspectProfile(path: string): Promise<InspectedProfile> {
  const profile = await openProfile(path);
  const file = await open(path, 'r');
  try {
    const header = await readHeader(file, path);
    const tensors = [...header.tensors].toSorted(([, a], [, b]) => a.offsetBytes - b.offsetBytes);
    const parts = [
      { name: 'header (model, plans, provenance, quality)', byteLength: header.dataOffsetBytes, count: 1 },
      ...tensors.map(([name, { lengthBytes }]) => ({ name, byteLength: lengthBytes, count: 1 })),
    ];
    const { id, model, rank, provenance, quality, byteLength } = profile;
    const filed = profile.codec === 'wtc' ? [] : profile.plans;
    const plans = filed.map(({ ratio, key, value, keyError, valueError }) => ({
      ratio,
      keyRank: key.rank,
      valueRank: value.rank,
      keyGroups: key.groups.length,
      valueGroups: value.groups.length,
      keyError,
      valueError,
    }));
    return {
      kind: 'profile',
      codec: profile.codec,
      path,
      byteLength,
      id,
      model,
      rank,
      provenance,
      quality,
      plans,
      steps: profile.codec === 'wtc' ? profile.steps : [],
      ...sizeOf(header, provenance),
      tuning: profile.codec === 'wtc' ? profile.tuning : null,
      tokenFeatures: profile.codec === 'wtc' ? (profile.tokenMeans?.dims ?? null) : null,
      parts: checked(parts, byteLength),
    };
  } finally {
    await file.close();
    await profile.close();
  }
}

/** What a profile adds to its model. Throws KVTC_FILE_NOT_FOUND, KVTC_PROFILE_*. */
export async function profileSize(path: string): Promise<ProfileSize> {
  const { matrixEntries, parameterShare } = await inspectProfile(path);
  return { matrixEntries, parameterShare };
}

function sizeOf({ tensors }: SafetensorsHeader, { modelParameters }: Provenance): ProfileSize {
  let matrixEntries = 0;
  for (const [name, { shape }] of tensors) {
    if (!/^(key|value)\.(basis|synthesis|analysis|metric|expected)$|^token\.features$/u.test(name)) continue;
    matrixEntries += shape.reduce((product, extent) => product * extent, 1);
  }
  return { matrixEntries, parameterShare: modelParameters === undefined ? null : matrixEntries / modelParameters };
}

async function inspectGguf(path: string): Promise<InspectedGguf> {
  const gguf = await describeGguf(path);
  const { model, refusal } = await modelIdentity(gguf).then(
    (identity) => ({ model: identity, refusal: null }),
    (error: unknown) => {
      if (!isKvtcError(error, 'KVTC_MODEL_UNSUPPORTED') && !isKvtcError(error, 'KVTC_ROPE_UNSUPPORTED')) throw error;
      return { model: null, refusal: error.message };
    },
  );
  return {
    kind: 'gguf',
    path,
    byteLength: gguf.byteLength,
    version: `${gguf.version}`,
    tensorCount: gguf.tensors.size,
    metadataCount: gguf.metadata.size,
    model,
    refusal,
    parts: checked(
      gguf.parts.filter((part) => part.byteLength > 0),
      gguf.byteLength,
    ),
  };
}

function checked(parts: readonly InspectedPart[], byteLength: number): readonly InspectedPart[] {
  const sum = parts.reduce((total, part) => total + part.byteLength, 0);
  invariant(sum === byteLength, `parts sum to ${sum} bytes, the file has ${byteLength}`);
  return parts;
}
