// The engine's own quantised caches as rivals: a context of that type runs the prefix itself and goes on from it, with
// the arithmetic its users get. Does not know: logits, documents, how rows are quantised.

import { KvtcError } from '../../base/errors.ts';
import type { CacheGeometry, CacheType } from '../../base/geometry.ts';
import { STREAMS, elementBytes, headDim, layerWidth } from '../../base/geometry.ts';
import { effectiveRatio, paperRatio } from '../../codec/accounting.ts';
import { rotationSize } from '../../engines/llama/retype-state.ts';
import type { ContextOptions, LlamaContext, LlamaModel } from '../../engines/llama/session.ts';
import { parseState } from '../../engines/llama/state.ts';
import type { Treatment } from '../treatment.ts';
import { rawStateBytes } from '../treatment.ts';

/** The types that llama.cpp offers for caches and that anyone uses. */
const NATIVE_TYPES: readonly CacheType[] = ['q8_0', 'q5_1', 'q4_1', 'q4_0'];

/** Read by the engine when it makes a context; set by users who want its rows as they are. */
const ROTATION_SWITCH = 'LLAMA_ATTN_ROT_DISABLE';

export interface NativeOptions {
  readonly model: LlamaModel;
  /** Those of the context that the exact cache runs in: calls must have the same shapes. */
  readonly context: ContextOptions;
  readonly types?: readonly CacheType[] | undefined;
  /** False switches the engine's Hadamard rotation off, as LLAMA_ATTN_ROT_DISABLE=1 does. Default true. */
  readonly rotated?: boolean | undefined;
}

/**
 * A treatment per type, keys and values alike. Contexts are made at first use, one at a time is held, and go with the
 * model. Labels say whether the engine rotates the model's heads. Throws KVTC_MODEL_UNSUPPORTED for heads that blocks of
 * 32 do not divide.
 */
export function nativeTreatments(options: NativeOptions): Treatment[] {
  const { model, types = NATIVE_TYPES, rotated = true } = options;
  const { geometry } = model.identity;
  const odd = STREAMS.find((stream) => headDim(geometry, stream) % 32 !== 0);
  if (odd !== undefined) {
    const message = `${odd} heads of ${headDim(geometry, odd)} values do not divide into the engine's blocks of 32`;
    throw new KvtcError('KVTC_MODEL_UNSUPPORTED', message, { headDim: headDim(geometry, odd) });
  }
  const turns = rotated && process.env[ROTATION_SWITCH] !== '1' && rotationSize('key', geometry.keyHeadDim) > 1;
  let held: { readonly type: CacheType; readonly context: LlamaContext } | undefined;
  const contextOf = async (type: CacheType): Promise<LlamaContext> => {
    if (held?.type !== type) {
      held?.context.close();
      held = undefined;
      const context = await withRotation(turns, () =>
        model.createContext({ ...options.context, keyType: type, valueType: type }),
      );
      held = { type, context };
    }
    return held.context;
  };
  return types.map((type) => ({
    label: `${type} native${turns ? ', rotated' : ', not rotated'}`,
    ratio: null,
    settings: { type, rotated: String(turns), engine: model.engine },
    prefills: true,
    apply: async (state, tokens, { signal, onDecoded }) => {
      const startedMs = performance.now();
      const context = await contextOf(type);
      context.clear();
      await context.decode(tokens, { logits: 'none', signal });
      onDecoded?.(tokens.length);
      return {
        state: new Uint8Array(0),
        context,
        ...nativeRatios(geometry, type, tokens.length, rawStateBytes(parseState(state))),
        compressMs: performance.now() - startedMs,
        restoreMs: 0,
      };
    },
  }));
}

/** Every token is stored alike: no window, no sinks. */
function nativeRatios(
  geometry: CacheGeometry,
  type: CacheType,
  tokenCount: number,
  rawBytes: number,
): { paperRatio: number; effectiveRatio: number; storedBytes: number } {
  const widths = STREAMS.map((stream) => layerWidth(geometry, stream));
  const storedBytes = tokenCount * geometry.layers * widths.reduce((sum, width) => sum + elementBytes(type, width), 0);
  const valuesPerToken = geometry.layers * widths.reduce((sum, width) => sum + width, 0);
  return {
    paperRatio: paperRatio({ valuesPerToken, tokenCount, windowTokens: 0, sinkTokens: 0, chunkBytes: storedBytes }),
    effectiveRatio: effectiveRatio(rawBytes, storedBytes),
    storedBytes,
  };
}

/** The engine reads the switch from the environment of the process, which Node writes through to. */
async function withRotation<T>(rotated: boolean, make: () => Promise<T>): Promise<T> {
  const before = process.env[ROTATION_SWITCH];
  if (rotated || before === '1') return make();
  process.env[ROTATION_SWITCH] = '1';
  try {
    return await make();
  } finally {
    if (before === undefined) delete process.env[ROTATION_SWITCH];
    else process.env[ROTATION_SWITCH] = before;
  }
}
