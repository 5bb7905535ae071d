// .kvtc container → engine state bytes: exact rows as they were, coded rows synthesised a few chunks at a time into the state.
// Does not know: how an engine takes a state, how bytes lie in a state or a container.

import { totalmem } from 'node:os';
import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import { inTurn } from '../base/in-turn.ts';
import type { CacheGeometry, LayerRange, StreamKind } from '../base/geometry.ts';
import { STREAMS, elementBytes, layerWidth, streamWidth } from '../base/geometry.ts';
import type { ChunkEntry, Container, ContainerHeader } from '../container/types.ts';
import { createState, placeRows, scatterRows } from '../engines/llama/state.ts';
import type { RowPlacement } from '../linalg/backend.ts';
import type { Profile } from '../profile/profile.ts';
import { checkCodec, createChunkDecoder } from './chunk-coder.ts';
import type { ChunkGroup } from './chunk-seam.ts';
import { floatPool } from '../base/float-pool.ts';
import { mapInOrder } from './pipeline.ts';
import type { Transforms } from './transforms.ts';

export interface RestoreOptions extends RunOptions {
  /** `blob` for llama_state_seq_set_data; `file` is the `ggsq` format of llama_state_seq_load_file and node-llama-cpp. */
  readonly format?: 'blob' | 'file' | undefined;
  /** Values channel-major, as contexts without flash attention hold them. */
  readonly vTransposed?: boolean | undefined;
  /**
   * Bytes of state that may be allocated; default: the machine's memory. A small file of a plan that codes nothing can
   * claim any number of tokens.
   */
  readonly maxStateBytes?: number | undefined;
}

export interface RestoreResult {
  readonly state: Uint8Array;
  readonly tokens: Int32Array | null;
  readonly tokenCount: number;
  readonly elapsedMs: number;
}

/**
 * Restores a whole container into the bytes of a sequence state, in the element types it was made from.
 * Memory beyond the state: the prepared bases and the coefficients of about 3 000 tokens.
 * Throws KVTC_PROFILE_MISMATCH or KVTC_MODEL_MISMATCH when the profile is not the container's, KVTC_CODEC_UNKNOWN,
 * KVTC_CONTAINER_* and KVTC_CHUNK_MALFORMED for damaged bytes, KVTC_CONTAINER_LIMIT for a state beyond `maxStateBytes`,
 * KVTC_ABORTED. Source: paper §3.3, eq. 3.
 */
export async function restoreContainer(
  container: Container,
  transforms: Transforms,
  options: RestoreOptions = {},
): Promise<RestoreResult> {
  const startedMs = performance.now();
  const { signal, onEvent } = options;
  throwIfAborted(signal);
  checkProfile(container, transforms.profile);
  const { header, positions, tokens } = container;
  const { geometry } = transforms.profile.model;
  if (options.format === 'file' && tokens === null) {
    throw new KvtcError(
      'KVTC_STATE_UNSUPPORTED',
      'the container holds no token ids, which a state file must carry; restore it as a blob',
    );
  }
  checkStateBytes(header, geometry, options.maxStateBytes ?? totalmem());
  const { state, view } = createState({
    format: options.format ?? 'blob',
    tokens: options.format === 'file' ? tokens : null,
    positions,
    layers: geometry.layers,
    keyType: header.elementTypes.key,
    valueType: header.elementTypes.value,
    keyWidth: layerWidth(geometry, 'key'),
    valueWidth: layerWidth(geometry, 'value'),
    vTransposed: options.vTransposed ?? false,
  });
  const allLayers = { startLayer: 0, endLayer: geometry.layers };
  for (const [index, range] of header.exactRanges.entries()) {
    for (const stream of STREAMS) {
      scatterRows(view, stream, allLayers, range, await container.readExactRows(stream, index));
    }
  }
  let done = 0;
  const target = (group: ChunkGroup): RowTarget => {
    const placement = placeRows(view, group.stream, allLayers, group);
    if (placement !== null) return { bytes: state, placement };
    const rowBytes = elementBytes(header.elementTypes[group.stream], streamWidth(geometry, group.stream));
    return { bytes: new Uint8Array((group.endToken - group.startToken) * rowBytes) };
  };
  await eachRestoredGroup(container, transforms, { layers: allLayers, signal, target }, (group, { bytes }) => {
    if (bytes !== state) scatterRows(view, group.stream, allLayers, group, bytes);
    done += group.endToken - group.startToken;
    onEvent?.({ type: 'progress', phase: 'restore', done: done / 2, total: header.tokenCount, unit: 'tokens' });
  });
  throwIfAborted(signal);
  return { state, tokens, tokenCount: header.tokenCount, elapsedMs: performance.now() - startedMs };
}

/** Rows of one stream of a layer range, all tokens: [layers][tokens][layerWidth] of the container's element type. */
export interface LayerRows {
  readonly key: Uint8Array;
  readonly value: Uint8Array;
}

/**
 * Restores only layers [startLayer, endLayer). Reads every chunk (coefficients are shared by all layers) but multiplies
 * with the range's rows of the basis alone. Errors as restoreContainer, and KVTC_OPTION_INVALID for an empty or
 * outlying range. Source: paper §3 (layer-wise decode).
 */
export async function restoreLayers(
  container: Container,
  transforms: Transforms,
  layers: LayerRange,
  options: RunOptions = {},
): Promise<LayerRows> {
  checkProfile(container, transforms.profile);
  const { header } = container;
  const { geometry } = transforms.profile.model;
  if (!(layers.startLayer >= 0 && layers.startLayer < layers.endLayer && layers.endLayer <= geometry.layers)) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `layers [${layers.startLayer}, ${layers.endLayer}) do not lie in the model's ${geometry.layers}`,
      { startLayer: layers.startLayer, endLayer: layers.endLayer, layers: geometry.layers },
    );
  }
  const count = layers.endLayer - layers.startLayer;
  const rowBytes = {
    key: elementBytes(header.elementTypes.key, layerWidth(geometry, 'key')),
    value: elementBytes(header.elementTypes.value, layerWidth(geometry, 'value')),
  };
  const out = {
    key: new Uint8Array(count * header.tokenCount * rowBytes.key),
    value: new Uint8Array(count * header.tokenCount * rowBytes.value),
  };
  const place = (stream: 'key' | 'value', startToken: number, endToken: number, rows: Uint8Array): void => {
    const bytes = (endToken - startToken) * rowBytes[stream];
    for (let layer = 0; layer < count; layer++) {
      out[stream].set(
        rows.subarray(layer * bytes, (layer + 1) * bytes),
        (layer * header.tokenCount + startToken) * rowBytes[stream],
      );
    }
  };
  for (const [index, range] of header.exactRanges.entries()) {
    for (const stream of STREAMS) {
      place(stream, range.startToken, range.endToken, await container.readExactRows(stream, index, layers));
    }
  }
  const target = ({ stream, startToken }: ChunkGroup): RowTarget => ({
    bytes: out[stream],
    placement: { offsetBytes: startToken * rowBytes[stream], layerStrideBytes: header.tokenCount * rowBytes[stream] },
  });
  await eachRestoredGroup(container, transforms, { layers, signal: options.signal, target }, () => undefined);
  return out;
}

/** Where a group's rows go: into the place of a larger buffer, or a buffer of their own. */
interface RowTarget {
  readonly bytes: Uint8Array;
  readonly placement?: RowPlacement;
}

interface GroupWork {
  readonly layers: LayerRange;
  readonly signal: AbortSignal | undefined;
  readonly target: (group: ChunkGroup) => RowTarget;
}

/** Groups on their way at once. */
const PIPELINE_GROUPS = 3;

/**
 * Tokens of a group at most, where its chunks are shorter: products take tokens with about as many coefficients together,
 * and find more alike among more.
 */
const GROUP_TOKENS = 1024;

/** Restores every chunk to its target, in groups, a few at a time, and tells of each group in order. */
async function eachRestoredGroup(
  container: Container,
  transforms: Transforms,
  { layers, signal, target }: GroupWork,
  take: (group: ChunkGroup, to: RowTarget) => void,
): Promise<void> {
  const { header, positions } = container;
  const decoder = createChunkDecoder(header, transforms.profile, await transforms.means(container.tokens));
  const pool = floatPool();
  // Else all decode before the first is multiplied, and products wait for this thread.
  const decode = inTurn();
  await mapInOrder(
    groupChunks(container.chunks),
    PIPELINE_GROUPS,
    async (group) => {
      const { coefficients, rank, leading } = await decode(async () => {
        throwIfAborted(signal);
        const stored = await Promise.all(group.chunks.map((chunk) => container.readChunk(chunk)));
        return decoder.decode(stored, group, pool);
      });
      const { stream, startToken, endToken } = group;
      const synthesis = await transforms.synthesis(stream, rank, header.elementTypes[stream]);
      const to = target(group);
      await synthesis.reconstruct(
        { values: coefficients, leading },
        positions.subarray(startToken, endToken),
        layers,
        to.bytes,
        to.placement,
      );
      pool.give(coefficients);
      return to;
    },
    (to, group) => take(group, to),
  );
}

/** Neighbours of one stream together, up to GROUP_TOKENS; in order of their first chunks. */
function groupChunks(chunks: readonly ChunkEntry[]): ChunkGroup[] {
  const groups: { stream: StreamKind; startToken: number; endToken: number; chunks: ChunkEntry[] }[] = [];
  for (const chunk of chunks) {
    const last = groups.findLast(({ stream }) => stream === chunk.stream);
    if (last?.endToken === chunk.startToken && chunk.endToken - last.startToken <= GROUP_TOKENS) {
      last.chunks.push(chunk);
      last.endToken = chunk.endToken;
    } else {
      groups.push({ stream: chunk.stream, startToken: chunk.startToken, endToken: chunk.endToken, chunks: [chunk] });
    }
  }
  return groups;
}

function checkStateBytes(header: ContainerHeader, geometry: CacheGeometry, maxStateBytes: number): void {
  const bytes = STREAMS.reduce(
    (sum, stream) => sum + header.tokenCount * elementBytes(header.elementTypes[stream], streamWidth(geometry, stream)),
    0,
  );
  if (bytes <= maxStateBytes) return;
  throw new KvtcError(
    'KVTC_CONTAINER_LIMIT',
    `the cache of ${header.tokenCount} tokens takes ${bytes} bytes; at most ${maxStateBytes} are allowed`,
    { tokenCount: header.tokenCount, gotBytes: bytes, limitBytes: maxStateBytes },
  );
}

function checkProfile(container: Container, profile: Profile): void {
  const { header } = container;
  checkCodec(header);
  if (header.model.fingerprint !== profile.model.fingerprint) {
    throw new KvtcError(
      'KVTC_MODEL_MISMATCH',
      `the container belongs to model ${header.model.name} (${header.model.fingerprint.slice(0, 12)}), the profile to ${profile.model.name} (${profile.model.fingerprint.slice(0, 12)})`,
      { got: header.model.fingerprint, expected: profile.model.fingerprint },
    );
  }
  const [got, expected] = [header.model.geometry, profile.model.geometry];
  for (const dimension of ['layers', 'kvHeads', 'keyHeadDim', 'valueHeadDim'] as const) {
    if (got[dimension] !== expected[dimension]) {
      throw new KvtcError(
        'KVTC_MODEL_MISMATCH',
        `the container's model has ${dimension} ${got[dimension]}, the profile's ${expected[dimension]}`,
        { dimension, got: got[dimension], expected: expected[dimension] },
      );
    }
  }
  if (header.profileId !== profile.id) {
    throw new KvtcError(
      'KVTC_PROFILE_MISMATCH',
      `the container was coded with profile ${header.profileId.slice(0, 12)}, this one is ${profile.id.slice(0, 12)}; decode with the profile it was made with`,
      { got: header.profileId, expected: profile.id },
    );
  }
}
