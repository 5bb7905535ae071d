// The numeric backend in plain TypeScript: sums in f64, results rounded once to f32. The oracle of the conformance
// suite, and a slow way on machines without the engine's package. Precision is ignored: it is always at least f32.
// Does not know: files, plans, quantisers, engines' state formats.

import { decodeBf16, decodeF16, encodeBf16, encodeF16 } from '../base/half.ts';
import { invariant } from '../base/errors.ts';
import type { RopeDescription } from '../rope/description.ts';
import { applyRope, undoRope } from '../rope/rotate.ts';
import type {
  Analysis,
  Backend,
  MatrixSource,
  PreparedMatrix,
  RowLayout,
  RowPlacement,
  Synthesis,
  TransformSpec,
} from './backend.ts';
import { dot } from './dense.ts';
import {
  checkCoefficients,
  checkLayers,
  checkLayout,
  checkPlacement,
  checkRange,
  checkRows,
  checkSpec,
  checkValues,
  layoutWidth,
  rowBytes,
  rowWidth,
} from './shapes.ts';

/** Opens the backend; there is nothing to release, but it refuses work after close as others do. */
export function openReferenceBackend(): Backend {
  let open = true;
  const guard = <T>(work: () => Promise<T>): Promise<T> => {
    invariant(open, 'numeric backend used after close');
    return work();
  };
  return {
    id: 'reference',
    threads: 1,
    prepareMatrix: (matrix) => guard(() => prepareMatrix(matrix)),
    prepareAnalysis: (spec) => guard(() => prepareAnalysis(spec)),
    prepareSynthesis: (spec) => guard(() => prepareSynthesis(spec)),
    readRows: (layout, rope, rows, positions, out) =>
      guard(async () => {
        checkLayout(layout, rope);
        checkRows(layout, layout.layers, positions.length, rows);
        checkValues('out', out, positions.length, layoutWidth(layout));
        readRows(layout, rope, rows, positions, out);
      }),
    writeRows: (layout, rope, values, positions, out) =>
      guard(async () => {
        checkLayout(layout, rope);
        checkRows(layout, layout.layers, positions.length, out);
        checkValues('values', values, positions.length, layoutWidth(layout));
        writeRows(layout, rope, Float64Array.from(values), positions, layout.layers, out);
      }),
    close: () => {
      open = false;
    },
  };
}

async function readWhole(source: MatrixSource): Promise<Float32Array> {
  const values = new Float32Array(source.rows * source.columns);
  await source.read(0, source.rows, values);
  return values;
}

async function prepareMatrix(source: MatrixSource): Promise<PreparedMatrix> {
  const { rows, columns } = source;
  const matrix = await readWhole(source);
  return {
    rows,
    columns,
    multiply: async (x, n, out, range = { startRow: 0, endRow: rows }) => {
      checkRange(range, rows);
      const count = range.endRow - range.startRow;
      checkValues('x', x, n, columns);
      checkValues('out', out, n, count);
      for (let i = 0; i < n; i++) {
        const row = x.subarray(i * columns, (i + 1) * columns);
        for (let j = 0; j < count; j++) {
          const from = (range.startRow + j) * columns;
          out[i * count + j] = dot(row, matrix.subarray(from, from + columns));
        }
      }
    },
    close: () => undefined,
  };
}

async function prepareAnalysis(spec: TransformSpec): Promise<Analysis> {
  checkSpec(spec);
  const { layout, mean, rope, analysis } = spec;
  const rank = analysis.rows;
  const width = layoutWidth(layout);
  const matrix = await readWhole(analysis);
  return {
    rank,
    project: async (rows, positions, out, placement) => {
      const tokens = positions.length;
      const place = checkPlacement(layout, layout.layers, tokens, rows, placement);
      checkValues('coefficients', out, tokens, rank);
      const values = new Float64Array(tokens * width);
      readRows(layout, rope, taken(layout, layout.layers, tokens, rows, place), positions, values);
      for (let t = 0; t < tokens; t++) {
        const row = values.subarray(t * width, (t + 1) * width);
        for (let i = 0; i < width; i++) row[i]! -= mean[i]!;
        for (let k = 0; k < rank; k++) out[t * rank + k] = dot(row, matrix.subarray(k * width, (k + 1) * width));
      }
    },
    close: () => undefined,
  };
}

async function prepareSynthesis(spec: TransformSpec): Promise<Synthesis> {
  checkSpec(spec);
  const { layout, mean, rope, synthesis } = spec;
  const rank = synthesis.rows;
  const width = layoutWidth(layout);
  const matrix = await readWhole(synthesis);
  return {
    rank,
    reconstruct: async (coefficients, positions, range, out, placement) => {
      checkLayers(layout, range);
      const tokens = positions.length;
      const layers = range.endLayer - range.startLayer;
      checkCoefficients(coefficients, tokens, rank);
      const place = checkPlacement(layout, layers, tokens, out, placement);
      const start = range.startLayer * rowWidth(layout);
      const end = range.endLayer * rowWidth(layout);
      const values = new Float64Array(tokens * (end - start));
      for (let t = 0; t < tokens; t++) {
        const row = values.subarray(t * (end - start), (t + 1) * (end - start));
        for (let i = start; i < end; i++) row[i - start] = mean[i]!;
        for (let k = 0; k < rank; k++) {
          const weight = coefficients.values[t * rank + k]!;
          for (let i = start; i < end; i++) row[i - start]! += weight * matrix[k * width + i]!;
        }
      }
      const rows = new Uint8Array(layers * tokens * rowBytes(layout));
      writeRows(layout, rope, values, positions, layers, rows);
      eachLayer(layout, layers, tokens, place, (from, to, at) => out.set(rows.subarray(from, to), at));
    },
    close: () => undefined,
  };
}

/** Placed engine rows, layer after layer. */
function taken(
  layout: RowLayout,
  layers: number,
  tokens: number,
  bytes: Uint8Array,
  placement: RowPlacement,
): Uint8Array {
  const rows = new Uint8Array(layers * tokens * rowBytes(layout));
  const layerBytes = tokens * rowBytes(layout);
  eachLayer(layout, layers, tokens, placement, (from, _to, at) => rows.set(bytes.subarray(at, at + layerBytes), from));
  return rows;
}

/** Hands over where each layer's rows begin and end when packed, and where they are placed. */
function eachLayer(
  layout: RowLayout,
  layers: number,
  tokens: number,
  { offsetBytes, layerStrideBytes }: RowPlacement,
  take: (fromBytes: number, toBytes: number, placedBytes: number) => void,
): void {
  const layerBytes = tokens * rowBytes(layout);
  for (let layer = 0; layer < layers; layer++) {
    take(layer * layerBytes, (layer + 1) * layerBytes, offsetBytes + layer * layerStrideBytes);
  }
}

/** Engine rows [layers][tokens][heads · headDim] → [tokens, width], RoPE undone. */
function readRows(
  layout: RowLayout,
  rope: RopeDescription | null,
  rows: Uint8Array,
  positions: Int32Array,
  out: Float32Array | Float64Array,
): void {
  const values = decode(layout.element, rows);
  const width = rowWidth(layout);
  const tokens = positions.length;
  for (let layer = 0; layer < layout.layers; layer++) {
    const part = values.subarray(layer * tokens * width, (layer + 1) * tokens * width);
    if (rope !== null) undoRope(part, positions, rope, layout);
    for (let t = 0; t < tokens; t++) {
      out.set(part.subarray(t * width, (t + 1) * width), t * layoutWidth(layout) + layer * width);
    }
  }
}

/** [tokens, layers · heads · headDim] → engine rows of `layers` layers, RoPE redone. */
function writeRows(
  layout: RowLayout,
  rope: RopeDescription | null,
  values: Float64Array,
  positions: Int32Array,
  layers: number,
  out: Uint8Array,
): void {
  const width = rowWidth(layout);
  const tokens = positions.length;
  const rounded = new Float32Array(values.length);
  for (let layer = 0; layer < layers; layer++) {
    const part = rounded.subarray(layer * tokens * width, (layer + 1) * tokens * width);
    for (let t = 0; t < tokens; t++) {
      part.set(values.subarray((t * layers + layer) * width, (t * layers + layer + 1) * width), t * width);
    }
    if (rope !== null) applyRope(part, positions, rope, layout);
  }
  encode(layout.element, rounded, out);
}

function decode(element: RowLayout['element'], rows: Uint8Array): Float32Array {
  const bytes = rows.slice(); // aligned, whatever the view was
  if (element === 'f32') return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer);
  const values = new Float32Array(halves.length);
  (element === 'f16' ? decodeF16 : decodeBf16)(halves, values);
  return values;
}

function encode(element: RowLayout['element'], values: Float32Array, out: Uint8Array): void {
  if (element === 'f32') return out.set(new Uint8Array(values.buffer));
  const halves = new Uint16Array(values.length);
  (element === 'f16' ? encodeF16 : encodeBf16)(values, halves);
  out.set(new Uint8Array(halves.buffer));
}
