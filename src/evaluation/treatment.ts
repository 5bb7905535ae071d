// What an evaluation does to a cache before it goes on from it: the seam between protocol and codecs, the cache room's
// codec as a treatment, and the one that shows the engine's own noise. Does not know: logits, documents, contexts.

import type { RunOptions } from '../base/events.ts';
import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import { STREAMS, elementBytes, headDim } from '../base/geometry.ts';
import { KvtcError } from '../base/errors.ts';
import type { CompressOptions } from '../cache/compress.ts';
import { COMPRESS_DEFAULTS, compressState } from '../cache/compress.ts';
import { ranksInUse } from '../cache/chunk-coder.ts';
import { restoreContainer } from '../cache/restore.ts';
import type { Transforms } from '../cache/transforms.ts';
import { openContainer } from '../container/reader.ts';
import { memoryTarget } from '../container/target.ts';
import type { StateView } from '../engines/llama/state.ts';
import { gatherRows, parseState, rowBytesOf, scatterRows } from '../engines/llama/state.ts';
import type { LlamaContext } from '../engines/llama/session.ts';
import type { Profile } from '../profile/profile.ts';

/** What the protocol asks of an engine. */
export type ProtocolContext = Pick<LlamaContext, 'clear' | 'decode' | 'logits' | 'getState' | 'setState' | 'truncate'>;

/** A cache as a codec would give it back, and what it would store for it. */
export interface TreatedState {
  /** Sequence state that the engine takes; not looked at when `context` is there. */
  readonly state: Uint8Array;
  /** A context of the treatment's own, of the same model, that holds exactly the prefix. */
  readonly context?: ProtocolContext;
  /** Both as docs/accounting.md defines them; null where nothing is stored. */
  readonly paperRatio: number | null;
  readonly effectiveRatio: number | null;
  readonly storedBytes: number | null;
  readonly compressMs: number;
  readonly restoreMs: number;
}

export interface Treatment {
  /** Short, unique within a run, stable: results are found again by it. */
  readonly label: string;
  /** Target ratio, for those that have one. */
  readonly ratio: number | null;
  /** Same for treatments that differ in their target alone: one curve of rate against loss. */
  readonly series?: string | undefined;
  /** Every setting that the outcome depends on, the profile's id among them. */
  readonly settings: Readonly<Record<string, string | number>>;
  /** True when `apply` runs the prefix through the engine again; for progress. */
  readonly prefills?: boolean;
  /** `state`: the exact cache of `tokens`, never changed. */
  apply(state: Uint8Array, tokens: Int32Array, options: ApplyOptions): Promise<TreatedState>;
}

export interface ApplyOptions extends Pick<RunOptions, 'signal'> {
  /** Told of tokens that `apply` decodes. */
  readonly onDecoded?: ((tokens: number) => void) | undefined;
}

/** Settings of `compress` that change what is stored. */
export type KvtcSettings = {
  readonly [K in keyof Omit<CompressOptions, keyof RunOptions | 'tokens' | 'engine'>]?: NonNullable<CompressOptions[K]>;
};

/** What tokens at either end get. */
export type ChosenModes = Pick<KvtcSettings, 'sinkMode' | 'windowMode'>;

/** What tokens at either end get of a codec where nothing is asked for. */
export function usualModes({ codec }: Pick<Profile, 'codec'>): Required<ChosenModes> {
  const mode = codec === 'kvtc-paper' ? 'exact' : 'finer';
  return { sinkMode: mode, windowMode: mode };
}

/** What rows of a codec are called: the published one `kvtc`, others by their own name. */
export function codecName({ codec }: Pick<Profile, 'codec'>): string {
  return codec === 'kvtc-paper' ? 'kvtc' : codec;
}

/**
 * Through a container in memory and back, as `compress` and `restore` do. Options as there; `ratio` must have a plan.
 * The label names codec, ratio and every setting that is not the codec's default; `name` stands for the codec's where
 * several profiles share it.
 */
export function kvtcTreatment(
  transforms: Transforms,
  options: KvtcSettings,
  name: string = codecName(transforms.profile),
): Treatment {
  const { profile, backend } = transforms;
  const isPaper = profile.codec === 'kvtc-paper';
  const usual = {
    ...COMPRESS_DEFAULTS,
    ...usualModes(profile),
    entropy: isPaper ? COMPRESS_DEFAULTS.entropy : 'none',
  } as const;
  const setting = { ...usual, ...options };
  const { ratio, sinks, sinkMode, window, windowMode, chunkTokens, entropy } = setting;
  const keyRatio = options.keyRatio ?? ratio;
  const valueRatio = options.valueRatio ?? ratio;
  const exactRanges = setting.exactRanges.map(({ startToken, endToken }) => `${startToken}-${endToken}`).join(' ');
  const ratioName =
    options.step !== undefined
      ? `step ${options.step}`
      : keyRatio === valueRatio
        ? `${keyRatio}x`
        : `${keyRatio}x/${valueRatio}x`;
  const departures = (['sinks', 'sinkMode', 'window', 'windowMode', 'chunkTokens', 'entropy', 'entropyLevel'] as const)
    .filter((key) => setting[key] !== usual[key])
    .map((key) => `${{ sinkMode: 'sinks', windowMode: 'window' }[key as string] ?? key} ${setting[key]}`);
  if (exactRanges !== '') departures.push(`exact ${exactRanges}`);
  return {
    label: [name, ratioName, ...departures].join(' '),
    series: [name, ...departures].join(' '),
    ratio: options.step === undefined && keyRatio === valueRatio ? keyRatio : null,
    settings: {
      profile: profile.id,
      keyRatio,
      valueRatio,
      sinks,
      window,
      exactRanges,
      chunkTokens,
      entropy,
      entropyLevel: options.entropyLevel ?? 'default',
      backend: backend.id,
      // Steps may be replaced without a new id, and plans of the paper's codec never name one.
      ...(profile.codec === 'wtc' ? { sinkMode, windowMode, step: options.step ?? JSON.stringify(profile.steps) } : {}),
    },
    apply: async (state, tokens, { signal }) => {
      await prepare(transforms, options, parseState(state));
      const target = memoryTarget();
      const stored = await compressState(state, transforms, target, { ...options, tokens, signal });
      const container = await openContainer(target.bytes());
      try {
        const restored = await restoreContainer(container, transforms, {
          vTransposed: parseState(state).vTransposed,
          signal,
        });
        return {
          state: restored.state,
          paperRatio: stored.paperRatio,
          effectiveRatio: stored.effectiveRatio,
          storedBytes: stored.storedBytes,
          compressMs: stored.elapsedMs,
          restoreMs: restored.elapsedMs,
        };
      } finally {
        await container.close();
      }
    },
  };
}

/** Loads the matrices of both directions, which a running program does once, so that no timing contains it. */
async function prepare(transforms: Transforms, options: KvtcSettings, view: StateView): Promise<void> {
  for (const ranks of ranksInUse(transforms.profile, { window: COMPRESS_DEFAULTS.window, ...options })) {
    for (const stream of STREAMS) {
      const element = stream === 'key' ? view.keyType : view.valueType;
      await transforms.analysis(stream, ranks[stream], element);
      await transforms.synthesis(stream, ranks[stream], element);
    }
  }
}

/** Mantissa bits of an f16 value that the floor clears: what evidence.md 2.4 measures an engine's own noise with. */
const FLOOR_BITS = 3;

/**
 * The exact cache with the lowest three mantissa bits of every value cleared. What this costs is the engine's own noise:
 * no codec can be judged below it. Takes f16 caches; throws KVTC_STATE_UNSUPPORTED for others.
 */
export const floorTreatment: Treatment = {
  label: 'floor',
  ratio: null,
  settings: { clearedMantissaBits: FLOOR_BITS },
  apply: async (state) => {
    const treated = state.slice();
    const view = parseState(treated);
    for (const stream of STREAMS) {
      requireF16(view, stream);
      eachLayerBytes(view, stream, (bytes) => {
        const halves = new Uint16Array(bytes.buffer);
        const kept = 0xffff << FLOOR_BITS;
        for (let i = 0; i < halves.length; i++) halves[i]! &= kept;
      });
    }
    return {
      state: treated,
      paperRatio: null,
      effectiveRatio: null,
      storedBytes: null,
      compressMs: 0,
      restoreMs: 0,
    };
  },
};

/** The exact cache put back as it was: costs nothing in a sound engine. Useful to test one. */
export const exactTreatment: Treatment = {
  label: 'exact',
  ratio: null,
  settings: {},
  apply: async (state) => {
    const rawBytes = rawStateBytes(parseState(state));
    return { state, paperRatio: 1, effectiveRatio: 1, storedBytes: rawBytes, compressMs: 0, restoreMs: 0 };
  },
};

/** Bytes of a cache's rows as the engine holds them, without the frame of the state. */
export function rawStateBytes(view: StateView): number {
  return view.tokenCount * view.layers * (view.keyRowBytes + view.valueRowBytes);
}

/**
 * Hands every layer's rows of a stream to `edit` as bytes [tokens][layer width] of the state's element type, in a buffer
 * of their own, and puts them back.
 */
export function eachLayerBytes(view: StateView, stream: StreamKind, edit: (rows: Uint8Array) => void): void {
  const rows = new Uint8Array(view.tokenCount * rowBytesOf(view, stream));
  const tokens = { startToken: 0, endToken: view.tokenCount };
  for (let layer = 0; layer < view.layers; layer++) {
    const layers = { startLayer: layer, endLayer: layer + 1 };
    gatherRows(view, stream, layers, tokens, rows);
    edit(rows);
    scatterRows(view, stream, layers, tokens, rows);
  }
}

/** Throws KVTC_STATE_UNSUPPORTED unless the stream is held in f16. */
function requireF16(view: StateView, stream: StreamKind): void {
  const element = stream === 'key' ? view.keyType : view.valueType;
  if (element !== 'f16') {
    const message = `the ${stream} cache is ${element}; this treatment takes f16`;
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', message, { stream, element });
  }
}

/** Throws KVTC_STATE_MISMATCH unless the state's rows have the model's shape. */
export function requireGeometry(view: StateView, geometry: CacheGeometry): void {
  for (const stream of STREAMS) {
    requireF16(view, stream);
    const expected = elementBytes('f16', geometry.kvHeads * headDim(geometry, stream));
    const got = rowBytesOf(view, stream);
    if (got !== expected || view.layers !== geometry.layers) {
      throw new KvtcError(
        'KVTC_STATE_MISMATCH',
        `the state has ${view.layers} layers of ${got} ${stream} bytes, the model ${geometry.layers} of ${expected}`,
        { stream, got, expected, layers: view.layers },
      );
    }
  }
}
