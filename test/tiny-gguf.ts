// Tiny models with random weights, as GGUF files the engine loads: every architecture and rope variant the tests need,
// without downloads. Half a megabyte each, byte-level vocabulary of 259 tokens. Same kind and seed, same bytes.

import { writeFile } from 'node:fs/promises';
import { seededRandom } from '../src/base/random.ts';

export const TINY_KINDS = ['llama', 'qwen2', 'qwen3', 'llama3', 'yarn', 'mistral3', 'linear', 'partial'] as const;
export type TinyKind = (typeof TINY_KINDS)[number];

export interface TinyOptions {
  readonly seed?: number;
  readonly layers?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly trainedContext?: number;
  /** False leaves the vocabulary out; the model then takes token ids only. */
  readonly vocabulary?: boolean;
}

export type MetadataValue =
  | string
  | boolean
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] };

export interface TensorSpec {
  readonly name: string;
  /** Fastest dimension first. */
  readonly dims: readonly number[];
  readonly values: Float32Array;
}

const EMBEDDING = 64;
const FEED_FORWARD = 96;
const MERGES = ['t h', 'th e', 'a n'];

/** Writes a model of the kind to `path`. `yarn`, `linear`, `llama3` are llama with that scaling; `partial` is stablelm. */
export async function writeTinyModel(path: string, kind: TinyKind, options: TinyOptions = {}): Promise<void> {
  const { seed = 1, layers = 3, heads = 4, kvHeads = 2, headDim = EMBEDDING / heads, trainedContext = 4096 } = options;
  const random = seededRandom(seed);
  const architecture = ARCHITECTURES[kind] ?? kind;
  const partial = kind === 'partial';
  const key = (name: string): string => `${architecture}.${name}`;
  const vocabulary = tinyVocabulary();
  const metadata: Record<string, MetadataValue> = {
    'general.architecture': architecture,
    'general.name': `tiny ${kind}`,
    [key('context_length')]: { u32: trainedContext },
    [key('embedding_length')]: { u32: EMBEDDING },
    [key('block_count')]: { u32: layers },
    [key('feed_forward_length')]: { u32: FEED_FORWARD },
    [key('attention.head_count')]: { u32: heads },
    [key('attention.head_count_kv')]: { u32: kvHeads },
    [key('attention.key_length')]: { u32: headDim },
    [key('attention.value_length')]: { u32: headDim },
    [key(partial ? 'attention.layer_norm_epsilon' : 'attention.layer_norm_rms_epsilon')]: { f32: 1e-5 },
    [key('rope.dimension_count')]: { u32: partial ? headDim / 2 : headDim },
    [key('rope.freq_base')]: { f32: kind === 'qwen2' ? 1e6 : 10_000 },
    ...ropeMetadata(kind, key),
    [key('vocab_size')]: { u32: vocabulary.length },
    ...(options.vocabulary === false ? { 'tokenizer.ggml.model': 'none' } : tokenizerMetadata(vocabulary)),
  };
  const tensors: TensorSpec[] = [];
  const add = (name: string, dims: readonly number[], scale: number, mean = 0): void => {
    const count = dims.reduce((product, dim) => product * dim, 1);
    const values = Float32Array.from({ length: count }, () => mean + scale * random.normal());
    tensors.push({ name, dims, values });
  };
  const norm = (name: string, width: number): void => {
    add(`${name}.weight`, [width], 0.1, 1);
    if (partial) add(`${name}.bias`, [width], 0.1);
  };
  const matrix = (name: string, from: number, to: number): void => add(`${name}.weight`, [from, to], from ** -0.5);
  add('token_embd.weight', [EMBEDDING, vocabulary.length], 1);
  norm('output_norm', EMBEDDING);
  add('output.weight', [EMBEDDING, vocabulary.length], 0.3);
  if (kind === 'llama3') {
    const values = Float32Array.from({ length: headDim / 2 }, (_, i) => (i < headDim / 4 ? 1 : 1 + (8 * i) / headDim));
    tensors.push({ name: 'rope_freqs.weight', dims: [headDim / 2], values });
  }
  for (let layer = 0; layer < layers; layer++) {
    const block = (name: string): string => `blk.${layer}.${name}`;
    norm(block('attn_norm'), EMBEDDING);
    for (const [letter, count] of [
      ['q', heads],
      ['k', kvHeads],
      ['v', kvHeads],
    ] as const) {
      matrix(block(`attn_${letter}`), EMBEDDING, count * headDim);
      if (kind === 'qwen2') add(block(`attn_${letter}.bias`), [count * headDim], 1);
    }
    if (kind === 'qwen3') {
      add(block('attn_q_norm.weight'), [headDim], 0.3, 1);
      add(block('attn_k_norm.weight'), [headDim], 0.3, 1);
    }
    matrix(block('attn_output'), heads * headDim, EMBEDDING);
    norm(block('ffn_norm'), EMBEDDING);
    matrix(block('ffn_gate'), EMBEDDING, FEED_FORWARD);
    matrix(block('ffn_up'), EMBEDDING, FEED_FORWARD);
    matrix(block('ffn_down'), FEED_FORWARD, EMBEDDING);
  }
  await writeFile(path, encodeGguf(metadata, tensors));
}

const ARCHITECTURES: Readonly<Partial<Record<TinyKind, string>>> = {
  llama3: 'llama',
  yarn: 'llama',
  linear: 'llama',
  partial: 'stablelm',
};

function ropeMetadata(kind: TinyKind, key: (name: string) => string): Record<string, MetadataValue> {
  const scaling = (type: string, factor: number): Record<string, MetadataValue> => ({
    [key('rope.scaling.type')]: type,
    [key('rope.scaling.factor')]: { f32: factor },
  });
  const original = { [key('rope.scaling.original_context_length')]: { u32: 1024 } };
  if (kind === 'linear') return scaling('linear', 4);
  if (kind === 'yarn') return { ...scaling('yarn', 4), ...original, [key('rope.scaling.attn_factor')]: { f32: 1.25 } };
  if (kind === 'mistral3') {
    return {
      ...scaling('yarn', 16),
      ...original,
      [key('rope.scaling.yarn_beta_fast')]: { f32: 4 },
      [key('rope.scaling.yarn_beta_slow')]: { f32: 0.5 },
      [key('rope.scaling.yarn_log_multiplier')]: { f32: 0.5 },
    };
  }
  return {};
}

function tokenizerMetadata(vocabulary: readonly string[]): Record<string, MetadataValue> {
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': { strings: vocabulary },
    'tokenizer.ggml.token_type': { i32s: vocabulary.map((token) => (token.startsWith('<|') ? 3 : 1)) },
    'tokenizer.ggml.merges': { strings: MERGES },
    'tokenizer.ggml.bos_token_id': { u32: vocabulary.length - 1 },
    'tokenizer.ggml.eos_token_id': { u32: vocabulary.length - 1 },
    'tokenizer.ggml.add_bos_token': false,
  };
}

/** One token per byte, in GPT-2's printable spelling, then the merges, then one control token. */
function tinyVocabulary(): string[] {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  const tokens: string[] = [];
  let unprintable = 0;
  for (let byte = 0; byte < 256; byte++) {
    tokens.push(String.fromCodePoint(printable(byte) ? byte : 256 + unprintable++));
  }
  return [...tokens, ...MERGES.map((merge) => merge.replace(' ', '')), '<|end|>'];
}

/** The bytes of a GGUF v3 file with f32 tensors. */
export function encodeGguf(
  metadata: Readonly<Record<string, MetadataValue>>,
  tensors: readonly TensorSpec[],
  version = 3,
): Uint8Array {
  const chunks: Uint8Array[] = [];
  const bytes = (size: number, write: (view: DataView) => void): void => {
    const chunk = new Uint8Array(size);
    write(new DataView(chunk.buffer));
    chunks.push(chunk);
  };
  const u32 = (value: number): void => bytes(4, (view) => view.setUint32(0, value, true));
  const u64 = (value: number): void => bytes(8, (view) => view.setBigUint64(0, BigInt(value), true));
  const string = (text: string): void => {
    const encoded = new TextEncoder().encode(text);
    u64(encoded.length);
    chunks.push(encoded);
  };
  u32(0x46554747);
  u32(version);
  u64(tensors.length);
  u64(Object.keys(metadata).length);
  for (const [name, value] of Object.entries(metadata)) {
    string(name);
    if (typeof value === 'string') {
      u32(8);
      string(value);
    } else if (typeof value === 'boolean') {
      u32(7);
      chunks.push(Uint8Array.of(value ? 1 : 0));
    } else if ('u32' in value) {
      u32(4);
      u32(value.u32);
    } else if ('f32' in value) {
      u32(6);
      bytes(4, (view) => view.setFloat32(0, value.f32, true));
    } else if ('strings' in value) {
      u32(9);
      u32(8);
      u64(value.strings.length);
      value.strings.forEach(string);
    } else {
      u32(9);
      u32(5);
      u64(value.i32s.length);
      value.i32s.forEach((item) => bytes(4, (view) => view.setInt32(0, item, true)));
    }
  }
  const padded = (size: number): number => Math.ceil(size / 32) * 32;
  let offset = 0;
  for (const { name, dims, values } of tensors) {
    string(name);
    u32(dims.length);
    dims.forEach(u64);
    u32(0);
    u64(offset);
    offset += padded(values.byteLength);
  }
  const headBytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  chunks.push(new Uint8Array(padded(headBytes) - headBytes));
  for (const { values } of tensors) {
    chunks.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    chunks.push(new Uint8Array(padded(values.byteLength) - values.byteLength));
  }
  return new Uint8Array(Buffer.concat(chunks));
}
