// The numeric backend on ggml's CPU kernels. Each stage of a chunk is one graph; constant matrices stay loaded.
// Does not know: files, plans, quantisers, engines' state formats.

import { availableParallelism } from 'node:os';
import { invariant } from '../../base/errors.ts';
import type { LayerRange } from '../../base/geometry.ts';
import type { RopeDescription } from '../../rope/description.ts';
import type {
  Analysis,
  Backend,
  MatrixSource,
  Precision,
  PreparedMatrix,
  RowLayout,
  Synthesis,
  TransformSpec,
} from '../backend.ts';
import { checkLayers, checkLayout, checkRows, checkValues, layoutWidth, rowWidth } from '../shapes.ts';
import { GgmlDevice } from './device.ts';
import type { ConstantTensor } from './device.ts';
import { GGML_TYPE } from './library.ts';
import type { Pointer } from './library.ts';
import { loadMatrix, loadTransposed, loadVector, padded } from './matrix.ts';
import { downloadRows, readRowsGraph, uploadPositions, uploadRows, writeRowsGraph } from './stages.ts';
import type { PreparedRope, TokenSlice } from './stages.ts';

/** Most tokens of one graph: bounds the working buffer however many tokens a call brings. */
const SLICE_TOKENS = 256;

export interface GgmlBackendOptions {
  /** Threads of the products; default and upper bound: the cores this process may use. */
  readonly threads?: number | undefined;
}

/** Opens the backend. Throws KVTC_ENGINE_MISSING, KVTC_ENGINE_VERSION or KVTC_BACKEND_FAILED. Close it. */
export function openGgmlBackend(options: GgmlBackendOptions = {}): Backend {
  const cores = availableParallelism();
  const device = new GgmlDevice(Math.max(1, Math.min(cores, options.threads ?? cores)));
  return {
    id: 'ggml',
    threads: device.threads,
    prepareMatrix: (matrix, precision) => prepareMatrix(device, matrix, precision),
    prepareAnalysis: (spec) => prepareAnalysis(device, spec),
    prepareSynthesis: (spec) => prepareSynthesis(device, spec),
    readRows: (layout, rope, rows, positions, out) => readRows(device, layout, rope, rows, positions, out),
    writeRows: (layout, rope, values, positions, out) => writeRows(device, layout, rope, values, positions, out),
    close: () => device.close(),
  };
}

async function prepareMatrix(device: GgmlDevice, source: MatrixSource, precision: Precision): Promise<PreparedMatrix> {
  const { rows, columns } = source;
  const matrix = await loadMatrix(device, source, precision);
  const width = padded(columns);
  return {
    rows,
    columns,
    async multiply(x, n, out, range = { startRow: 0, endRow: rows }) {
      const count = range.endRow - range.startRow;
      invariant(range.startRow >= 0 && count > 0 && range.endRow <= rows, 'matrix rows out of range');
      checkValues('x', x, n, columns);
      checkValues('out', out, n, count);
      if (n === 0) return;
      await device.run((graph) => {
        const { library, context } = graph;
        const leaf = graph.tensor('f32', columns, n);
        const wide = width === columns ? leaf : library.pad(context, leaf, width - columns, 0, 0, 0);
        const stride = Number(library.rowBytes(GGML_TYPE[precision], width));
        const part = library.view(context, matrix.tensor, width, count, stride, range.startRow * stride);
        const product = library.multiply(context, part, wide);
        return {
          inputs: [leaf],
          outputs: [product],
          upload: () => library.tensorSet(leaf, x, 0, x.byteLength),
          download: () => library.tensorGet(product, out, 0, out.byteLength),
        };
      });
    },
    close: matrix.close,
  };
}

async function prepareAnalysis(device: GgmlDevice, spec: TransformSpec): Promise<Analysis> {
  const { layout, precision, basis } = spec;
  checkSpec(spec);
  const rank = basis.rows;
  const width = layoutWidth(layout);
  const wide = padded(width);
  const held = await loadAll(device, spec, () => loadMatrix(device, basis, precision));
  return {
    rank,
    async project(rows, positions, out) {
      const totalTokens = positions.length;
      checkRows(layout, layout.layers, totalTokens, rows);
      checkValues('coefficients', out, totalTokens, rank);
      const sums = new Float32Array(SLICE_TOKENS);
      for (const slice of slices(totalTokens)) {
        const { startToken, tokens } = slice;
        const part = out.subarray(startToken * rank, (startToken + tokens) * rank);
        // oxlint-disable-next-line no-await-in-loop -- one graph at a time, through one working buffer
        await device.run((graph) => {
          const { library, context } = graph;
          const { leaves, values } = readRowsGraph(graph, layout, held.rope, tokens);
          const centred = library.subtract(context, values, held.mean.tensor);
          const x = wide === width ? centred : library.pad(context, centred, wide - width, 0, 0, 0);
          const coefficients = library.multiply(context, held.matrix.tensor, x);
          // Rounding to q8_0 can turn NaN into numbers; the plain sum of a row keeps it.
          const sum = library.sumRows(context, centred);
          return {
            inputs: [leaves.rows, leaves.positions],
            outputs: [coefficients, sum],
            upload: () => {
              uploadRows(library, leaves, layout, rows, slice);
              if (held.rope !== null) uploadPositions(library, leaves, positions, slice);
            },
            download: () => {
              library.tensorGet(coefficients, part, 0, part.byteLength);
              library.tensorGet(sum, sums, 0, tokens * 4);
            },
          };
        });
        for (let t = 0; t < tokens; t++) {
          if (!Number.isFinite(sums[t])) part.fill(NaN, t * rank, (t + 1) * rank);
        }
      }
    },
    close: held.close,
  };
}

async function prepareSynthesis(device: GgmlDevice, spec: TransformSpec): Promise<Synthesis> {
  const { layout, precision, basis } = spec;
  checkSpec(spec);
  const rank = basis.rows;
  const wide = padded(rank);
  const held = await loadAll(device, spec, () => loadTransposed(device, basis, precision));
  return {
    rank,
    async reconstruct(coefficients, positions, range, out) {
      checkLayers(layout, range);
      const layers = range.endLayer - range.startLayer;
      const totalTokens = positions.length;
      checkValues('coefficients', coefficients, totalTokens, rank);
      checkRows(layout, layers, totalTokens, out);
      const width = layers * rowWidth(layout);
      const offset = range.startLayer * rowWidth(layout);
      for (const slice of slices(totalTokens)) {
        const { startToken, tokens } = slice;
        const part = coefficients.subarray(startToken * rank, (startToken + tokens) * rank);
        // oxlint-disable-next-line no-await-in-loop -- one graph at a time, through one working buffer
        await device.run((graph) => {
          const { library, context } = graph;
          const leaf = graph.tensor('f32', rank, tokens);
          const x = wide === rank ? leaf : library.pad(context, leaf, wide - rank, 0, 0, 0);
          const stride = Number(library.rowBytes(GGML_TYPE[precision], wide));
          const matrix = library.view(context, held.matrix.tensor, wide, width, stride, offset * stride);
          const mean = library.view(context, held.mean.tensor, width, 1, width * 4, offset * 4);
          const values = library.add(context, library.multiply(context, matrix, x), mean);
          const leaves = writeRowsGraph(graph, layout, layers, held.rope, values, tokens);
          return {
            inputs: [leaf, leaves.positions],
            outputs: [leaves.rows],
            upload: () => {
              library.tensorSet(leaf, part, 0, part.byteLength);
              if (held.rope !== null) uploadPositions(library, leaves, positions, slice);
            },
            download: () => downloadRows(library, leaves, layout, layers, out, slice),
          };
        });
      }
    },
    close: held.close,
  };
}

async function readRows(
  device: GgmlDevice,
  layout: RowLayout,
  rope: RopeDescription | null,
  rows: Uint8Array,
  positions: Int32Array,
  out: Float32Array,
): Promise<void> {
  checkLayout(layout, rope);
  checkRows(layout, layout.layers, positions.length, rows);
  const width = layoutWidth(layout);
  checkValues('out', out, positions.length, width);
  await withRope(device, rope, async (prepared) => {
    for (const slice of slices(positions.length)) {
      const { startToken, tokens } = slice;
      const part = out.subarray(startToken * width, (startToken + tokens) * width);
      // oxlint-disable-next-line no-await-in-loop -- one graph at a time, through one working buffer
      await device.run((graph) => {
        const { library } = graph;
        const { leaves, values } = readRowsGraph(graph, layout, prepared, tokens);
        return {
          inputs: [leaves.rows, leaves.positions],
          outputs: [values],
          upload: () => {
            uploadRows(library, leaves, layout, rows, slice);
            if (prepared !== null) uploadPositions(library, leaves, positions, slice);
          },
          download: () => library.tensorGet(values, part, 0, part.byteLength),
        };
      });
    }
  });
}

async function writeRows(
  device: GgmlDevice,
  layout: RowLayout,
  rope: RopeDescription | null,
  values: Float32Array,
  positions: Int32Array,
  out: Uint8Array,
): Promise<void> {
  checkLayout(layout, rope);
  checkRows(layout, layout.layers, positions.length, out);
  const width = layoutWidth(layout);
  checkValues('values', values, positions.length, width);
  await withRope(device, rope, async (prepared) => {
    for (const slice of slices(positions.length)) {
      const { startToken, tokens } = slice;
      const part = values.subarray(startToken * width, (startToken + tokens) * width);
      // oxlint-disable-next-line no-await-in-loop -- one graph at a time, through one working buffer
      await device.run((graph) => {
        const { library } = graph;
        const leaf = graph.tensor('f32', width, tokens);
        const leaves = writeRowsGraph(graph, layout, layout.layers, prepared, leaf, tokens);
        return {
          inputs: [leaf, leaves.positions],
          outputs: [leaves.rows],
          upload: () => {
            library.tensorSet(leaf, part, 0, part.byteLength);
            if (prepared !== null) uploadPositions(library, leaves, positions, slice);
          },
          download: () => downloadRows(library, leaves, layout, layout.layers, out, slice),
        };
      });
    }
  });
}

interface Held {
  readonly matrix: ConstantTensor;
  readonly mean: ConstantTensor;
  readonly rope: PreparedRope | null;
  close(): void;
}

/** Loads what a transform keeps: matrix, mean, frequency factors. A failure frees what was loaded. */
async function loadAll(device: GgmlDevice, spec: TransformSpec, matrix: () => Promise<ConstantTensor>): Promise<Held> {
  const loaded: ConstantTensor[] = [];
  const keep = async (load: Promise<ConstantTensor>): Promise<ConstantTensor> => {
    const tensor = await load;
    loaded.push(tensor);
    return tensor;
  };
  const close = (): void => {
    for (const tensor of loaded) tensor.close();
  };
  try {
    return {
      matrix: await keep(matrix()),
      mean: await keep(loadVector(device, spec.mean)),
      rope: await prepareRope(spec.rope, (factors) => keep(loadVector(device, factors))),
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

async function prepareRope(
  rope: RopeDescription | null,
  load: (factors: Float32Array) => Promise<ConstantTensor>,
): Promise<PreparedRope | null> {
  if (rope === null) return null;
  const factors: Pointer | null =
    rope.frequencyFactors === null ? null : (await load(Float32Array.from(rope.frequencyFactors))).tensor;
  return { description: rope, factors };
}

async function withRope(
  device: GgmlDevice,
  rope: RopeDescription | null,
  use: (prepared: PreparedRope | null) => Promise<void>,
): Promise<void> {
  const loaded: ConstantTensor[] = [];
  try {
    const prepared = await prepareRope(rope, async (factors) => {
      const tensor = await loadVector(device, factors);
      loaded.push(tensor);
      return tensor;
    });
    await use(prepared);
  } finally {
    for (const tensor of loaded) tensor.close();
  }
}

function checkSpec(spec: TransformSpec): void {
  checkLayout(spec.layout, spec.rope);
  const width = layoutWidth(spec.layout);
  invariant(
    spec.mean.length === width && spec.basis.columns === width,
    `transform of width ${width} with a mean of ${spec.mean.length} and a basis of ${spec.basis.columns} columns`,
  );
  invariant(spec.basis.rows > 0, 'a transform needs at least one component');
}

function slices(totalTokens: number): TokenSlice[] {
  const found: TokenSlice[] = [];
  for (let startToken = 0; startToken < totalTokens; startToken += SLICE_TOKENS) {
    found.push({ startToken, tokens: Math.min(SLICE_TOKENS, totalTokens - startToken), totalTokens });
  }
  return found;
}
