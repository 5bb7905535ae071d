// Engine state bytes → .kvtc container: lay out tokens, project and code chunk by chunk, keep exact tokens as found.
// Does not know: codecs, how a state was made, how bytes lie in a state or a container.

import { KvtcError } from '../base/errors.ts';
import type { RunOptions } from '../base/events.ts';
import { PRODUCER } from '../base/version.ts';
import { throwIfAborted } from '../base/events.ts';
import type { ElementType, StreamKind, TokenRange } from '../base/geometry.ts';
import { STREAMS, elementBytes, layerWidth, streamWidth } from '../base/geometry.ts';
import type { Ratios } from '../codec/accounting.ts';
import { containerRatios } from '../codec/accounting.ts';
import type { EntropyMethod } from '../codec/entropy/blocks.ts';
import type { ContainerPart, ContainerTarget } from '../container/types.ts';
import { createContainerWriter } from '../container/writer.ts';
import { retypeState } from '../engines/llama/retype-state.ts';
import type { StateView } from '../engines/llama/state.ts';
import { gatherRows, parseState, placeRows } from '../engines/llama/state.ts';
import type { Profile } from '../profile/profile.ts';
import { createChunkEncoder } from './chunk-coder.ts';
import type { CodingOptions, SinkMode, WindowMode } from './chunk-seam.ts';
import { DEFAULT_RATIO } from './chunk-seam.ts';
import { layOutTokens } from './layout.ts';
import { floatPool } from '../base/float-pool.ts';
import { mapInOrder } from './pipeline.ts';
import type { Transforms } from './transforms.ts';

/** Ranges of tokens, both streams of each, in flight at once: one in products, one being coded. */
const PIPELINE_RANGES = 2;

/** Defaults of the paper (§2: sinks and window; §4: ratio 16) and ours (chunk length R6; DEFLATE level by measurement). */
export const COMPRESS_DEFAULTS = {
  ratio: DEFAULT_RATIO,
  sinks: 4,
  window: 128,
  exactRanges: [],
  chunkTokens: 256,
  entropy: 'deflate',
  entropyLevel: 0,
} as const;

export interface CompressOptions extends RunOptions {
  /**
   * Target ratio. The paper's codec: one of the profile's plans; keys and values may differ. wtc: any within the
   * profile's steps, meant for the tokens outside the window.
   */
  readonly ratio?: number | undefined;
  readonly keyRatio?: number | undefined;
  readonly valueRatio?: number | undefined;
  /** wtc: the step of keys, instead of a ratio; values follow by the profile's proportion. */
  readonly step?: number | undefined;
  readonly sinks?: number | undefined;
  /** What the sinks get: `exact` (the paper's; its default), or `finer`: the first exact, the others coded (wtc's default). */
  readonly sinkMode?: SinkMode | undefined;
  readonly window?: number | undefined;
  /** What the window gets: `exact` (the paper's; its default) or `finer` steps (wtc's default). */
  readonly windowMode?: WindowMode | undefined;
  readonly exactRanges?: readonly TokenRange[] | undefined;
  readonly chunkTokens?: number | undefined;
  readonly entropy?: EntropyMethod | undefined;
  readonly entropyLevel?: number | undefined;
  /** Token ids, where the state itself does not carry them (blobs do not). */
  readonly tokens?: Int32Array | undefined;
  /** Free note on the engine, stored in the header. */
  readonly engine?: string | undefined;
}

export interface CompressResult extends Ratios {
  readonly tokenCount: number;
  /** Bytes of the cache's rows as the engine holds them. */
  readonly rawBytes: number;
  /** Bytes of the whole container. */
  readonly storedBytes: number;
  readonly parts: readonly ContainerPart[];
  readonly elapsedMs: number;
}

/**
 * Compresses the state of one sequence (blob or file bytes; never changed) into a container.
 * `target`: a path (written as a partial file, renamed when whole) or a ContainerTarget. Memory beyond the state:
 * the prepared bases and about six chunks.
 * A q8_0 cache is coded as f16. Throws KVTC_STATE_* for bytes that are no state of this model, KVTC_PLAN_MISSING for a ratio the profile does not serve,
 * KVTC_ROWS_NOT_FINITE for NaN or ±Inf in coded rows, KVTC_OPTION_INVALID, KVTC_WRITE_FAILED, KVTC_ABORTED.
 * Source: paper §2-3; docs/format/container.md, docs/format/paper-codec.md.
 */
export async function compressState(
  state: Uint8Array,
  transforms: Transforms,
  target: string | ContainerTarget,
  options: CompressOptions = {},
): Promise<CompressResult> {
  const startedMs = performance.now();
  const { profile } = transforms;
  const { signal, onEvent } = options;
  throwIfAborted(signal);
  const setting = settingOf(options);
  const found = parseState(state);
  checkState(found, profile);
  const view = withoutQ8(found, profile);
  const tokens = options.tokens ?? view.tokens;
  if (tokens !== null && tokens.length !== view.tokenCount) {
    throw new KvtcError('KVTC_STATE_MISMATCH', `${tokens.length} token ids for a state of ${view.tokenCount} tokens`, {
      gotTokens: tokens.length,
      expectedTokens: view.tokenCount,
    });
  }
  const encoder = createChunkEncoder(profile, { ...setting.coding, means: await transforms.means(tokens) });
  const { exactSinks: sinks, exactWindow: window } = encoder;
  const layout = layOutTokens(view.tokenCount, { ...setting, sinks, window });
  const elements = { key: view.keyType, value: view.valueType };
  const { geometry } = profile.model;
  const writer = createContainerWriter(target, {
    producer: PRODUCER,
    codec: encoder.codec,
    codecParameters: encoder.parameters,
    entropy: encoder.entropy,
    profileId: profile.id,
    model: profile.model,
    tokenCount: view.tokenCount,
    chunkTokens: setting.chunkTokens,
    elementTypes: elements,
    exactRanges: layout.exact,
    engine: options.engine ?? '',
  });
  try {
    writer.writePositions(view.positions);
    if (tokens !== null) writer.writeTokens(tokens);
    const allLayers = { startLayer: 0, endLayer: geometry.layers };
    for (const [index, range] of layout.exact.entries()) {
      for (const stream of STREAMS) {
        const rows = new Uint8Array(rowBytes(view, profile, stream, range));
        gatherRows(view, stream, allLayers, range, rows);
        await writer.writeExactRows(stream, index, rows);
      }
    }
    let done = 0;
    const pool = floatPool();
    await mapInOrder(
      layout.chunks,
      PIPELINE_RANGES,
      async (range) => {
        const tokenCount = range.endToken - range.startToken;
        const ranks = encoder.ranks(range, view.tokenCount);
        const coefficients = {
          key: pool.take(tokenCount * ranks.key), // [tokens, rank]
          value: pool.take(tokenCount * ranks.value),
        };
        const project = async (stream: StreamKind): Promise<void> => {
          throwIfAborted(signal);
          const placement = placeRows(view, stream, allLayers, range);
          const rows = placement === null ? new Uint8Array(rowBytes(view, profile, stream, range)) : view.bytes;
          if (placement === null) gatherRows(view, stream, allLayers, range, rows);
          const analysis = await transforms.analysis(stream, ranks[stream], elements[stream]);
          const positions = view.positions.subarray(range.startToken, range.endToken);
          await analysis.project(rows, positions, coefficients[stream], placement ?? undefined);
        };
        await Promise.all(STREAMS.map(project));
        const chunks = await encoder.encode(coefficients, range, view.tokenCount);
        for (const stream of STREAMS) pool.give(coefficients[stream]);
        return chunks;
      },
      async (chunks, range) => {
        for (const stream of STREAMS) {
          const { packedBytes, stored } = chunks[stream];
          await writer.writeChunk({ stream, ...range, packedBytes }, stored);
        }
        done += range.endToken - range.startToken;
        onEvent?.({ type: 'progress', phase: 'compress', done, total: view.tokenCount, unit: 'tokens' });
      },
    );
    throwIfAborted(signal);
    const { byteLength, parts } = await writer.finish();
    const rawBytes = (found.keyRowBytes + found.valueRowBytes) * geometry.layers * found.tokenCount;
    return {
      tokenCount: view.tokenCount,
      rawBytes,
      storedBytes: byteLength,
      parts,
      ...containerRatios({
        valuesPerToken: streamWidth(geometry, 'key') + streamWidth(geometry, 'value'),
        tokenCount: view.tokenCount,
        sinks,
        exactRanges: layout.exact,
        parts,
        rawBytes,
        byteLength,
      }),
      elapsedMs: performance.now() - startedMs,
    };
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/** q8_0 rows become f16, the engine's rotation undone: the transform takes plain values, and restore gives f16 back. */
function withoutQ8(view: StateView, profile: Profile): StateView {
  const plain = (element: ElementType): ElementType => (element === 'q8_0' ? 'f16' : element);
  const types = { keyType: plain(view.keyType), valueType: plain(view.valueType) };
  if (types.keyType === view.keyType && types.valueType === view.valueType) return view;
  return retypeState(view, profile.model.geometry, types).view;
}

function checkState(view: StateView, profile: Profile): void {
  const { geometry } = profile.model;
  for (const [what, got, expected] of [
    ['layers', view.layers, geometry.layers],
    ['key row bytes', view.keyRowBytes, elementBytes(view.keyType, layerWidth(geometry, 'key'))],
    ['value row bytes', view.valueRowBytes, elementBytes(view.valueType, layerWidth(geometry, 'value'))],
  ] as const) {
    if (got !== expected) {
      throw new KvtcError('KVTC_STATE_MISMATCH', `the state has ${got} ${what}, the profile's model has ${expected}`, {
        what,
        got,
        expected,
      });
    }
  }
  if (view.tokenCount === 0) {
    throw new KvtcError('KVTC_PROMPT_EMPTY', 'the state holds no tokens; there is nothing to compress');
  }
}

function rowBytes(view: StateView, profile: Profile, stream: StreamKind, range: TokenRange): number {
  const perLayer = stream === 'key' ? view.keyRowBytes : view.valueRowBytes;
  return (range.endToken - range.startToken) * perLayer * profile.model.geometry.layers;
}

interface CompressSetting {
  readonly exactRanges: readonly TokenRange[];
  readonly chunkTokens: number;
  readonly coding: CodingOptions;
}

function settingOf(options: CompressOptions): CompressSetting {
  const defaults = COMPRESS_DEFAULTS;
  const { ratio, keyRatio, valueRatio, step, sinkMode, windowMode, entropy } = options;
  const { sinks = defaults.sinks, window = defaults.window } = options;
  for (const [option, got] of Object.entries({ sinks, window })) {
    if (Number.isSafeInteger(got) && got >= 0) continue;
    const message = `${option} is ${got}; expected an integer of at least 0`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option, got });
  }
  const usual = entropy === undefined || entropy === defaults.entropy;
  return {
    exactRanges: options.exactRanges ?? defaults.exactRanges,
    chunkTokens: options.chunkTokens ?? defaults.chunkTokens,
    coding: {
      ratio,
      keyRatio,
      valueRatio,
      step,
      sinks,
      sinkMode,
      window,
      windowMode,
      entropy,
      entropyLevel: options.entropyLevel ?? (usual ? defaults.entropyLevel : undefined),
    },
  };
}
