// The chunk stages as ggml graphs: engine rows → f32 rows with RoPE undone, and back. One graph does a whole stage, so
// that JS touches no large f32 array. Shapes here are in ggml order: the fastest dimension first.
// Does not know: matrices' contents, chunking.

import type { RopeDescription } from '../../rope/description.ts';
import type { RowLayout, RowPlacement } from '../backend.ts';
import { rowBytes, rowWidth } from '../shapes.ts';
import type { ConstantTensor } from './device.ts';
import type { GraphBuilder } from './lane.ts';
import { GGML_TYPE } from './library.ts';
import type { GgmlLibrary, Pointer } from './library.ts';

/** Most tokens of one graph: bounds its working buffer, and products are as fast as with more. */
export const SLICE_TOKENS = 128;

/** ggml's rope modes: 0 rotates (2i, 2i+1), 2 rotates (i, i + dims/2). */
const ROPE_MODES = { interleaved: 0, 'half-split': 2 } as const;

/** A rotation with its frequency factors already in a tensor. */
export interface PreparedRope {
  readonly description: RopeDescription;
  readonly factors: Pointer | null;
}

/** Tokens [startToken, startToken + tokens) of a call. */
export interface TokenSlice {
  readonly startToken: number;
  readonly tokens: number;
}

/** Leaves for a slice of engine rows and its positions. */
export interface RowLeaves {
  readonly rows: Pointer; // [width, tokens, layers] of element
  readonly positions: Pointer; // i32 [tokens]
}

/** Engine rows [width, tokens, layers] → f32 [layers · width, tokens], RoPE undone. */
export function readRowsGraph(
  graph: GraphBuilder,
  layout: RowLayout,
  rope: PreparedRope | null,
  tokens: number,
): { leaves: RowLeaves; values: Pointer } {
  const { library, context } = graph;
  const rows = graph.tensor(layout.element, rowWidth(layout), tokens, layout.layers);
  const positions = graph.tensor('i32', tokens);
  const tokenMajor = library.permute(context, rows, 0, 2, 1, 3);
  let values =
    layout.element === 'f32'
      ? library.contiguous(context, tokenMajor)
      : library.cast(context, tokenMajor, GGML_TYPE.f32);
  if (rope !== null) values = rotate(graph, layout, layout.layers, rope, values, positions, tokens, true);
  values = library.reshape(context, values, layout.layers * rowWidth(layout), tokens, 1);
  return { leaves: { rows, positions }, values };
}

/** f32 [layers · width, tokens] → engine rows [width, tokens, layers], RoPE redone. `layers` may be a range's count. */
export function writeRowsGraph(
  graph: GraphBuilder,
  layout: RowLayout,
  layers: number,
  rope: PreparedRope | null,
  values: Pointer,
  tokens: number,
): RowLeaves {
  const { library, context } = graph;
  const positions = graph.tensor('i32', tokens);
  const rotated = rope === null ? values : rotate(graph, layout, layers, rope, values, positions, tokens, false);
  const tokenMajor = library.reshape(context, rotated, rowWidth(layout), layers, tokens);
  const layerMajor = library.permute(context, tokenMajor, 0, 2, 1, 3);
  const rows =
    layout.element === 'f32'
      ? library.contiguous(context, layerMajor)
      : library.cast(context, layerMajor, GGML_TYPE[layout.element]);
  return { rows, positions };
}

/** Leaves that are no part of the graph (positions without RoPE) are never allocated and must not be written. */
export function uploadPositions(
  library: GgmlLibrary,
  leaves: Pick<RowLeaves, 'positions'>,
  positions: Int32Array,
  tokens: Int32Array,
): void {
  const part = tokens.map((token) => positions[token]!);
  library.tensorSet(leaves.positions, part, 0, part.byteLength);
}

/** Copies a slice of tokens from engine rows, placed so for the whole call, into the rows tensor. */
export function uploadRows(
  library: GgmlLibrary,
  leaves: RowLeaves,
  layout: RowLayout,
  rows: Uint8Array,
  placement: RowPlacement,
  slice: TokenSlice,
): void {
  const bytes = rowBytes(layout);
  const run = slice.tokens * bytes;
  const from = rows.subarray(placement.offsetBytes + slice.startToken * bytes);
  library.tensorSet2d(leaves.rows, from, 0, run, layout.layers, run, placement.layerStrideBytes);
}

/** Copies the rows tensor, of the given tokens in rising order, into engine rows placed so for the whole call. */
export function downloadRows(
  library: GgmlLibrary,
  leaves: RowLeaves,
  layout: RowLayout,
  layers: number,
  out: Uint8Array,
  placement: RowPlacement,
  tokens: Int32Array,
): void {
  const bytes = rowBytes(layout);
  const stride = tokens.length * bytes;
  eachRun(tokens, (first, end) => {
    const to = out.subarray(placement.offsetBytes + tokens[first]! * bytes);
    library.tensorGet2d(
      leaves.rows,
      to,
      first * bytes,
      (end - first) * bytes,
      layers,
      stride,
      placement.layerStrideBytes,
    );
  });
}

/** Calls `take` for every run [first, end) of neighbours among tokens in rising order. */
export function eachRun(tokens: Int32Array, take: (first: number, end: number) => void): void {
  for (let first = 0, end = 1; first < tokens.length; first = end++) {
    while (end < tokens.length && tokens[end] === tokens[end - 1]! + 1) end++;
    take(first, end);
  }
}

function rotate(
  graph: GraphBuilder,
  layout: RowLayout,
  layers: number,
  rope: PreparedRope,
  values: Pointer,
  positions: Pointer,
  tokens: number,
  undo: boolean,
): Pointer {
  const { library, context } = graph;
  const { description: d, factors } = rope;
  const heads = library.reshape(context, values, layout.headDim, layout.heads * layers, tokens);
  // ggml's backward op is the transpose: it turns back but multiplies by mscale once more. Asking it for an attention
  // factor that makes the total 1/mscale gives the inverse, with no further pass over the rows.
  const yarn = d.extFactor === 0 ? 1 : 1 + 0.1 * Math.log(1 / d.frequencyScale);
  const attnFactor = undo ? 1 / (d.attnFactor * yarn * yarn) : d.attnFactor;
  return (undo ? library.ropeBack : library.rope)(
    context,
    heads,
    positions,
    factors,
    d.dims,
    ROPE_MODES[d.pairing],
    d.originalContext,
    d.frequencyBase,
    d.frequencyScale,
    d.extFactor,
    attnFactor,
    d.betaFast,
    d.betaSlow,
  );
}

/** Puts the frequency factors, if any, into a tensor made by `load`. */
export async function prepareRope(
  rope: RopeDescription | null,
  load: (factors: Float32Array) => Promise<ConstantTensor>,
): Promise<PreparedRope | null> {
  if (rope === null) return null;
  const factors: Pointer | null =
    rope.frequencyFactors === null ? null : (await load(Float32Array.from(rope.frequencyFactors))).tensor;
  return { description: rope, factors };
}

/** Every token of a slice. */
export function tokensOf({ startToken, tokens }: TokenSlice): Int32Array {
  return Int32Array.from({ length: tokens }, (_, i) => startToken + i);
}

/** Cuts a call's tokens into graphs' worths. */
export function slices(totalTokens: number, most: number = SLICE_TOKENS): TokenSlice[] {
  const found: TokenSlice[] = [];
  for (let startToken = 0; startToken < totalTokens; startToken += most) {
    found.push({ startToken, tokens: Math.min(most, totalTokens - startToken) });
  }
  return found;
}
