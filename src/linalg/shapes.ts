// Shape checks every backend makes before it touches memory: native code would abort the process on a wrong length.
// Does not know any backend.

import { KvtcError, invariant } from '../base/errors.ts';
import type { LayerRange } from '../base/geometry.ts';
import type { RopeDescription } from '../rope/description.ts';
import type { Coefficients, RowLayout, RowPlacement, TransformSpec } from './backend.ts';

/** Values per token and layer. */
export function rowWidth(layout: RowLayout): number {
  return layout.heads * layout.headDim;
}

/** The paper's p. */
export function layoutWidth(layout: RowLayout): number {
  return layout.layers * rowWidth(layout);
}

/** Bytes of one token's values in one layer. */
export function rowBytes(layout: RowLayout): number {
  return rowWidth(layout) * (layout.element === 'f32' ? 4 : 2);
}

/** Throws on a layout no backend can take, and KVTC_ROPE_UNSUPPORTED on a rotation that does not fit its heads. */
export function checkLayout(layout: RowLayout, rope: RopeDescription | null): void {
  const { layers, heads, headDim } = layout;
  for (const count of [layers, heads, headDim]) {
    invariant(Number.isSafeInteger(count) && count > 0, `row layout ${layers} × ${heads} × ${headDim}`);
  }
  if (rope === null) return;
  const factors = rope.frequencyFactors;
  const fits = Number.isSafeInteger(rope.dims) && rope.dims > 0 && rope.dims % 2 === 0 && rope.dims <= headDim;
  if (!fits || (factors !== null && factors.length !== rope.dims / 2)) {
    throw new KvtcError(
      'KVTC_ROPE_UNSUPPORTED',
      `RoPE over ${rope.dims} of ${headDim} values with ${factors?.length ?? 'no'} frequency factors; expected an even number of values within the head and half as many factors`,
      { dims: rope.dims, headDim },
    );
  }
}

/** Engine rows of `layers` layers, as bytes. */
export function checkRows(layout: RowLayout, layers: number, tokens: number, rows: Uint8Array): void {
  const expected = layers * tokens * rowBytes(layout);
  invariant(rows.length === expected, `engine rows take ${expected} bytes for ${tokens} tokens, got ${rows.length}`);
}

/** Where engine rows lie: as `placement` says, which must stay within the bytes, or layer after layer, filling them. */
export function checkPlacement(
  layout: RowLayout,
  layers: number,
  tokens: number,
  bytes: Uint8Array,
  placement: RowPlacement | undefined,
): RowPlacement {
  const layerBytes = tokens * rowBytes(layout);
  if (placement === undefined) {
    checkRows(layout, layers, tokens, bytes);
    return { offsetBytes: 0, layerStrideBytes: layerBytes };
  }
  const { offsetBytes, layerStrideBytes } = placement;
  const fits = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(layerStrideBytes);
  const endBytes = offsetBytes + (layers - 1) * layerStrideBytes + layerBytes;
  invariant(
    fits && offsetBytes >= 0 && layerStrideBytes >= layerBytes && endBytes <= bytes.length,
    `engine rows of ${layers} layers, ${layerStrideBytes} bytes apart from ${offsetBytes} on, in ${bytes.length} bytes`,
  );
  return placement;
}

export function checkValues(name: string, values: Float32Array, tokens: number, width: number): void {
  invariant(values.length === tokens * width, `${name} has ${values.length} values, expected ${tokens} × ${width}`);
}

/** Coefficients of `tokens` tokens, and as many counts where they are given, each within the rank. */
export function checkCoefficients({ values, leading }: Coefficients, tokens: number, rank: number): void {
  checkValues('coefficients', values, tokens, rank);
  if (leading === undefined) return;
  invariant(leading.length === tokens, `leading coefficients of ${leading.length} tokens, expected ${tokens}`);
  for (const count of leading) invariant(count >= 0 && count <= rank, `${count} leading coefficients of ${rank}`);
}

export function checkLayers(layout: RowLayout, range: LayerRange): void {
  const { startLayer, endLayer } = range;
  const fits = Number.isSafeInteger(startLayer) && Number.isSafeInteger(endLayer);
  invariant(
    fits && startLayer >= 0 && startLayer < endLayer && endLayer <= layout.layers,
    `layers ${startLayer} to ${endLayer} of ${layout.layers}`,
  );
}

/** Throws on a transform whose parts do not fit each other. */
export function checkSpec({ layout, rope, mean, analysis, synthesis }: TransformSpec): void {
  checkLayout(layout, rope);
  const width = layoutWidth(layout);
  invariant(
    mean.length === width &&
      analysis.columns === width &&
      synthesis.columns === width &&
      analysis.rows > 0 &&
      synthesis.rows === analysis.rows,
    `transform of width ${width} with a mean of ${mean.length}, an analysis of ${analysis.rows} × ${analysis.columns} and a synthesis of ${synthesis.rows} × ${synthesis.columns}`,
  );
}

/** A range of a matrix's rows. */
export function checkRange(range: { readonly startRow: number; readonly endRow: number }, rows: number): void {
  const { startRow, endRow } = range;
  const fits = Number.isSafeInteger(startRow) && Number.isSafeInteger(endRow);
  invariant(fits && startRow >= 0 && startRow < endRow && endRow <= rows, `rows ${startRow} to ${endRow} of ${rows}`);
}
