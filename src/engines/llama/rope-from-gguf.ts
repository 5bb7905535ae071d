// From a model file's metadata to its RopeDescription, as llama.cpp derives it for a context with default parameters.
// Does not know how angles are applied (rope/). Source: read in llama.cpp v0.4.0 (load of hyper-parameters, context
// set-up), restated; checked by taps in rope.test.ts.

import { KvtcError } from '../../base/errors.ts';
import type { RopeDescription } from '../../rope/description.ts';
import type { ArchitectureFacts } from './architecture.ts';
import type { Gguf } from './gguf.ts';
import { readTensor } from './gguf.ts';
import { numberAt, stringAt } from './gguf-keys.ts';

/** YaRN's turns per context where interpolation is off and full, unless the model says otherwise. */
const YARN_BETA_FAST = 32;
const YARN_BETA_SLOW = 1;

/**
 * Describes the rotation of a model's keys. `headDim` values per key head. Reads the `rope_freqs.weight` tensor, if any.
 * Throws KVTC_ROPE_UNSUPPORTED for scalings that are not implemented, KVTC_GGUF_MALFORMED for impossible numbers.
 */
export async function ropeFromGguf(gguf: Gguf, facts: ArchitectureFacts, headDim: number): Promise<RopeDescription> {
  const key = (name: string): string => `${facts.name}.rope.${name}`;
  const number = (name: string, fallback: number): number => numberAt(gguf, key(name), fallback);
  const scaling = stringAt(gguf, key('scaling.type'), 'linear');
  if (!['none', 'linear', 'yarn'].includes(scaling)) throw unsupported(`scaling ${JSON.stringify(scaling)}`);
  for (const name of gguf.tensors.keys()) {
    if (/rope_factors_(long|short)/.test(name)) throw unsupported('long and short factors (LongRoPE)');
  }
  if (gguf.metadata.has(key('dimension_sections'))) throw unsupported('several position axes (M-RoPE)');
  if (gguf.metadata.has(key('scaling.alpha'))) throw unsupported('XDRoPE scaling');
  const dims = number('dimension_count', headDim);
  const frequencyBase = Math.fround(number('freq_base', 10_000));
  const factor = Math.fround(number('scaling.factor', number('scale_linear', 0)));
  const originalContext = number('scaling.original_context_length', numberAt(gguf, `${facts.name}.context_length`, 0));
  if (!(Number.isInteger(dims) && dims > 0 && dims <= headDim && dims % 2 === 0 && frequencyBase > 0 && factor >= 0)) {
    throw new KvtcError(
      'KVTC_GGUF_MALFORMED',
      `the model file gives RoPE ${dims} dims of ${headDim}, base ${frequencyBase}, factor ${factor}`,
      { dims, headDim, frequencyBase, factor },
    );
  }
  const frequencyScale = scaling === 'none' || factor === 0 ? 1 : Math.fround(1 / factor);
  const extFactor = scaling === 'yarn' ? 1 : 0;
  const yarn = (name: string, fallback: number): number => (facts.readsYarnKeys ? number(name, fallback) : fallback);
  return {
    pairing: facts.pairing,
    dims,
    frequencyBase,
    frequencyScale,
    extFactor,
    attnFactor: attentionFactor(
      frequencyScale,
      extFactor,
      Math.fround(number('scaling.attn_factor', 1)),
      yarn('scaling.yarn_log_multiplier', 0),
    ),
    betaFast: yarn('scaling.yarn_beta_fast', YARN_BETA_FAST),
    betaSlow: yarn('scaling.yarn_beta_slow', YARN_BETA_SLOW),
    originalContext,
    frequencyFactors: await frequencyFactors(gguf, facts, dims),
  };
}

/**
 * llama.cpp divides ggml's own YaRN factor 1 + 0.1·ln(s) out again and multiplies by the factor the model family wants:
 * the same for s > 1, or 1 where a model scales attention logits by itself (log multiplier 1). All in f32.
 */
function attentionFactor(frequencyScale: number, extFactor: number, attnFactor: number, logMultiplier: number): number {
  if (extFactor === 0) return attnFactor;
  const f = Math.fround;
  const factor = f(1 / frequencyScale);
  const log = f(Math.log(factor));
  const mscale = (multiplier: number): number => (factor <= 1 ? 1 : f(f(f(f(0.1) * multiplier) * log) + 1));
  const wanted = logMultiplier === 0 ? mscale(1) : f(mscale(1) / mscale(f(logMultiplier)));
  const own = f(1 + f(f(0.1) * log));
  return f(f(wanted * f(1 / own)) * attnFactor);
}

async function frequencyFactors(gguf: Gguf, facts: ArchitectureFacts, dims: number): Promise<readonly number[] | null> {
  const tensor = gguf.tensors.get('rope_freqs.weight');
  if (tensor === undefined) return null;
  if (!facts.readsFrequencyFactors) throw unsupported(`frequency factors in a ${facts.name} model`);
  if (tensor.type !== 'f32' || tensor.dims.length !== 1 || tensor.dims[0] !== dims / 2) {
    throw unsupported(`${tensor.dims.join(' × ')} frequency factors of ${tensor.type} for ${dims} dims`);
  }
  const bytes = await readTensor(gguf, tensor);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const factors = Array.from({ length: dims / 2 }, (_, i) => view.getFloat32(i * 4, true));
  if (!factors.every((factor) => Number.isFinite(factor) && factor > 0)) {
    throw unsupported('frequency factors that are not positive');
  }
  return factors;
}

function unsupported(what: string): KvtcError {
  return new KvtcError(
    'KVTC_ROPE_UNSUPPORTED',
    `the model's rotary embedding uses ${what}, which is not implemented; keys of such a model cannot be coded`,
    { what },
  );
}
