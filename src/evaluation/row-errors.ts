// How far restored rows lie from the exact ones: by layer and KV head, by token position, and in all.
// Compares two states in the space the codec works in (RoPE undone, distances from the profile's mean).
// Does not know: logits, containers, which codec made the restored state.

import { KvtcError } from '../base/errors.ts';
import type { StreamKind } from '../base/geometry.ts';
import { headDim, streamWidth } from '../base/geometry.ts';
import type { StateView } from '../engines/llama/state.ts';
import { gatherRows, rowBytesOf } from '../engines/llama/state.ts';
import type { Backend, RowLayout } from '../linalg/backend.ts';
import type { Profile } from '../profile/profile.ts';

/** Tokens compared at a time: two buffers of this many f32 rows. */
const BLOCK_TOKENS = 128;

/** Bins of token positions: enough to see sinks, window and drift, few enough to draw. */
const POSITION_BINS = 64;

/** Error of one stream. All errors are squared distances over squared distances of the exact rows from the mean. */
export interface StreamErrors {
  readonly total: number;
  /** [layers][kvHeads], over the coded tokens. */
  readonly byHead: readonly (readonly number[])[];
  /** Half-open token ranges that tile the prefix, with the error of all their values. */
  readonly byPosition: readonly { readonly startToken: number; readonly endToken: number; readonly error: number }[];
  /** Mean squared distance of a coded token from the profile's mean: the energy that components share. */
  readonly energyPerToken: number;
}

export type RowErrors = Readonly<Record<StreamKind, StreamErrors>>;

export interface RowErrorOptions {
  readonly profile: Profile;
  readonly backend: Backend;
  readonly exact: StateView;
  readonly restored: StateView;
  /** Tokens that went through the codec: those outside are left out of `total`, `byHead` and `energyPerToken`. */
  readonly coded: (token: number) => boolean;
}

/**
 * Compares two states of the same tokens. O(tokens · p); memory: two blocks of 128 f32 rows.
 * Throws KVTC_STATE_MISMATCH when the states differ in shape, KVTC_STATE_UNSUPPORTED for q8_0 rows.
 */
export async function measureRowErrors(options: RowErrorOptions): Promise<RowErrors> {
  const { exact, restored } = options;
  if (exact.tokenCount !== restored.tokenCount || exact.layers !== restored.layers) {
    throw new KvtcError(
      'KVTC_STATE_MISMATCH',
      `rows of ${restored.layers} layers and ${restored.tokenCount} tokens cannot be compared with ${exact.layers} and ${exact.tokenCount}`,
      { gotTokens: restored.tokenCount, expectedTokens: exact.tokenCount },
    );
  }
  return { key: await streamErrors(options, 'key'), value: await streamErrors(options, 'value') };
}

async function streamErrors(options: RowErrorOptions, stream: StreamKind): Promise<StreamErrors> {
  const { profile, exact, restored, coded } = options;
  const { geometry } = profile.model;
  const { layers, kvHeads } = geometry;
  const dims = headDim(geometry, stream);
  const width = streamWidth(geometry, stream);
  const { mean } = profile.stream(stream);
  const headError = new Float64Array(layers * kvHeads);
  const headEnergy = new Float64Array(layers * kvHeads);
  const bins = Math.min(POSITION_BINS, exact.tokenCount);
  const binError = new Float64Array(bins);
  const binEnergy = new Float64Array(bins);
  const a = new Float32Array(BLOCK_TOKENS * width); // [tokens, p]
  const b = new Float32Array(BLOCK_TOKENS * width);
  let codedTokens = 0;
  for (let start = 0; start < exact.tokenCount; start += BLOCK_TOKENS) {
    const range = { startToken: start, endToken: Math.min(start + BLOCK_TOKENS, exact.tokenCount) };
    await readPlainRows(options, exact, stream, range, a);
    await readPlainRows(options, restored, stream, range, b);
    for (let token = range.startToken; token < range.endToken; token++) {
      const isCoded = coded(token);
      if (isCoded) codedTokens++;
      const bin = Math.floor((token * bins) / exact.tokenCount);
      const row = (token - start) * width;
      for (let head = 0; head < layers * kvHeads; head++) {
        let error = 0;
        let energy = 0;
        for (let i = head * dims; i < (head + 1) * dims; i++) {
          const difference = b[row + i]! - a[row + i]!;
          const distance = a[row + i]! - mean[i]!;
          error += difference * difference;
          energy += distance * distance;
        }
        binError[bin]! += error;
        binEnergy[bin]! += energy;
        if (!isCoded) continue;
        headError[head]! += error;
        headEnergy[head]! += energy;
      }
    }
  }
  const energy = sum(headEnergy);
  return {
    total: share(sum(headError), energy),
    byHead: Array.from({ length: layers }, (_, layer) =>
      Array.from({ length: kvHeads }, (__, head) => {
        const index = layer * kvHeads + head;
        return share(headError[index] ?? 0, headEnergy[index] ?? 0);
      }),
    ),
    byPosition: Array.from({ length: bins }, (_, bin) => ({
      startToken: Math.ceil((bin * exact.tokenCount) / bins),
      endToken: Math.ceil(((bin + 1) * exact.tokenCount) / bins),
      error: share(binError[bin] ?? 0, binEnergy[bin] ?? 0),
    })),
    energyPerToken: share(energy, codedTokens),
  };
}

/** Rows of a token range as f32 [tokens, p] with RoPE undone. */
async function readPlainRows(
  { profile, backend }: RowErrorOptions,
  view: StateView,
  stream: StreamKind,
  range: { readonly startToken: number; readonly endToken: number },
  out: Float32Array,
): Promise<void> {
  const { geometry, rope } = profile.model;
  const tokens = range.endToken - range.startToken;
  const rows = new Uint8Array(tokens * geometry.layers * rowBytesOf(view, stream));
  gatherRows(view, stream, { startLayer: 0, endLayer: geometry.layers }, range, rows);
  await backend.readRows(
    rowLayoutOf(view, profile, stream),
    stream === 'key' ? rope : null,
    rows,
    view.positions.subarray(range.startToken, range.endToken),
    out.subarray(0, tokens * streamWidth(geometry, stream)),
  );
}

function rowLayoutOf(view: StateView, profile: Profile, stream: StreamKind): RowLayout {
  const element = stream === 'key' ? view.keyType : view.valueType;
  if (element === 'q8_0') {
    throw new KvtcError('KVTC_STATE_UNSUPPORTED', `the ${stream} rows are q8_0; compare f16, bf16 or f32 states`, {
      stream,
      element,
    });
  }
  const { geometry } = profile.model;
  return { layers: geometry.layers, heads: geometry.kvHeads, headDim: headDim(geometry, stream), element };
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}

/** 0 where there is nothing to compare with. */
function share(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}
