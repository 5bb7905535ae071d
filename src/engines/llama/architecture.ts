// Which model architectures the cache of this engine can be coded for, and a model's identity from its file.
// The list is closed: an architecture is on it after its graph was read and its keys were seen to enter the cache right
// after one plain RoPE, the same in every layer. Does not know engine handles.

import { basename } from 'node:path';
import { KvtcError } from '../../base/errors.ts';
import type { CacheGeometry } from '../../base/geometry.ts';
import type { ModelIdentity } from '../../profile/profile.ts';
import type { RopePairing } from '../../rope/description.ts';
import type { Gguf } from './gguf.ts';
import { fingerprintModel } from './gguf.ts';
import { numberAt, stringAt } from './gguf-keys.ts';
import { ropeFromGguf } from './rope-from-gguf.ts';

export interface ArchitectureFacts {
  readonly name: string;
  readonly pairing: RopePairing;
  /** The graph divides angles by `rope_freqs.weight` where the file has it. */
  readonly readsFrequencyFactors: boolean;
  /** The loader reads YaRN's betas and log multiplier from the file; others use the defaults whatever the file says. */
  readonly readsYarnKeys: boolean;
}

const INTERLEAVED = 'arcee chatglm command-r ernie4_5 internlm2 llama mistral3 olmo xverse'.split(' ');
const HALF_SPLIT = (
  'apertus bitnet codeshell dbrx dots1 exaone falcon gemma gptneox nemotron olmoe orion phi2 phi3 qwen qwen2 ' +
  'qwen2moe qwen3 qwen3moe seed_oss stablelm starcoder2'
).split(' ');
/** Graphs that rotate part of a head; the others end the process when the file asks for it. */
const WITH_PARTIAL_ROTATION = 'bitnet chatglm command-r gemma gptneox phi2 phi3 qwen stablelm'.split(' ');
const WITH_FREQUENCY_FACTORS = ['apertus', 'arcee', 'exaone', 'llama', 'mistral3'];
const WITH_YARN_KEYS = ['mistral3'];

/** Facts of an architecture on the list, or KVTC_MODEL_UNSUPPORTED saying what the file shows to be different. */
function architectureFacts(gguf: Gguf): ArchitectureFacts {
  const name = stringAt(gguf, 'general.architecture');
  const reason = differentCache(gguf, name);
  if (reason !== null) throw unsupported(name, reason);
  const pairing = INTERLEAVED.includes(name) ? 'interleaved' : HALF_SPLIT.includes(name) ? 'half-split' : null;
  if (pairing === null) throw unsupported(name, 'its attention has not been checked against this engine');
  return {
    name,
    pairing,
    readsFrequencyFactors: WITH_FREQUENCY_FACTORS.includes(name),
    readsYarnKeys: WITH_YARN_KEYS.includes(name),
  };
}

function differentCache(gguf: Gguf, name: string): string | null {
  const has = (key: string): boolean => gguf.metadata.has(`${name}.${key}`);
  if (numberAt(gguf, 'split.count', 1) > 1) return 'it is split over several files';
  for (const key of gguf.metadata.keys()) {
    if (key.startsWith(`${name}.ssm.`) || key.startsWith(`${name}.wkv.`)) return 'it has recurrent layers';
  }
  if (has('attention.kv_lora_rank')) return 'it caches compressed keys and values (MLA)';
  if (has('rope.dimension_sections')) return 'its positions have several axes (M-RoPE)';
  // Architectures on the list that carry this key do not use it in the checked releases.
  if (has('attention.sliding_window') && !INTERLEAVED.includes(name) && !HALF_SPLIT.includes(name)) {
    return 'it attends through a sliding window';
  }
  return null;
}

/** Shape of the model's cache. Throws KVTC_MODEL_UNSUPPORTED where layers differ, KVTC_GGUF_MALFORMED. */
function geometryFromGguf(gguf: Gguf, name: string): CacheGeometry {
  const layers = numberAt(gguf, `${name}.block_count`);
  const heads = uniform(gguf, name, 'attention.head_count');
  const kvHeads = gguf.metadata.has(`${name}.attention.head_count_kv`)
    ? uniform(gguf, name, 'attention.head_count_kv')
    : heads;
  const plainDim = Math.floor(numberAt(gguf, `${name}.embedding_length`) / Math.max(1, heads));
  const geometry = {
    layers,
    kvHeads,
    keyHeadDim: numberAt(gguf, `${name}.attention.key_length`, plainDim),
    valueHeadDim: numberAt(gguf, `${name}.attention.value_length`, plainDim),
  };
  for (const [what, count] of Object.entries({ heads, ...geometry, queriesPerKvHead: heads / kvHeads })) {
    if (!Number.isInteger(count) || count < 1 || count > 65_536) {
      throw new KvtcError('KVTC_GGUF_MALFORMED', `the model file gives ${count} as ${what}`, { what, got: count });
    }
  }
  // The checked graphs end the process where these differ.
  if (geometry.keyHeadDim !== geometry.valueHeadDim) throw unsupported(name, 'its key and value heads differ in size');
  return geometry;
}

function uniform(gguf: Gguf, name: string, what: string): number {
  const value = gguf.metadata.get(`${name}.${what}`);
  if (typeof value !== 'object') return numberAt(gguf, `${name}.${what}`);
  const [first, ...rest] = value.values ?? [];
  if (typeof first !== 'number' || rest.some((other) => other !== first)) {
    throw unsupported(name, `its layers differ in ${what}`);
  }
  return first;
}

/**
 * Identity of a model: what profiles and containers are bound to. Throws KVTC_MODEL_UNSUPPORTED, KVTC_ROPE_UNSUPPORTED,
 * KVTC_GGUF_MALFORMED.
 */
export async function modelIdentity(gguf: Gguf): Promise<ModelIdentity> {
  const facts = architectureFacts(gguf);
  const geometry = geometryFromGguf(gguf, facts.name);
  const rope = await ropeFromGguf(gguf, facts, geometry.keyHeadDim);
  if (rope.dims !== geometry.keyHeadDim && !WITH_PARTIAL_ROTATION.includes(facts.name)) {
    throw unsupported(facts.name, `it rotates ${rope.dims} of ${geometry.keyHeadDim} dims, which its graph does not`);
  }
  return {
    architecture: facts.name,
    name: stringAt(gguf, 'general.name', basename(gguf.path, '.gguf')),
    geometry,
    rope,
    fingerprint: await fingerprintModel(gguf),
  };
}

function unsupported(name: string, reason: string): KvtcError {
  return new KvtcError(
    'KVTC_MODEL_UNSUPPORTED',
    `models of architecture ${JSON.stringify(name)} are not handled: ${reason}`,
    { architecture: name, reason },
  );
}
