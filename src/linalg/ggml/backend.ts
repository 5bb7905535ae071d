// The numeric backend on ggml's CPU kernels. Each stage of a chunk is one graph; constant matrices stay loaded.
// Does not know: files, plans, quantisers, engines' state formats.

import { availableParallelism } from 'node:os';
import type { RopeDescription } from '../../rope/description.ts';
import type { Backend, MatrixSource, Precision, PreparedMatrix, RowLayout } from '../backend.ts';
import { padded } from '../backend.ts';
import { checkLayout, checkPlacement, checkRange, checkValues, layoutWidth } from '../shapes.ts';
import { GgmlDevice } from './device.ts';
import type { ConstantTensor } from './device.ts';
import { GGML_TYPE } from './library.ts';
import { loadMatrix, loadVector } from './matrix.ts';
import {
  downloadRows,
  prepareRope,
  readRowsGraph,
  slices,
  tokensOf,
  uploadPositions,
  uploadRows,
  writeRowsGraph,
} from './stages.ts';
import type { PreparedRope } from './stages.ts';
import { prepareAnalysis, prepareSynthesis } from './transforms.ts';

/** Most rows of one plain product. */
const SLICE_ROWS = 512;

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
      checkRange(range, rows);
      checkValues('x', x, n, columns);
      checkValues('out', out, n, count);
      for (const { startToken: start, tokens: taken } of slices(n, SLICE_ROWS)) {
        const rowsIn = x.subarray(start * columns, (start + taken) * columns);
        const rowsOut = out.subarray(start * count, (start + taken) * count);
        await device.runAlone((graph) => {
          const { library, context } = graph;
          const leaf = graph.tensor('f32', columns, taken);
          const wide = width === columns ? leaf : library.pad(context, leaf, width - columns, 0, 0, 0);
          const stride = Number(library.rowBytes(GGML_TYPE[precision], width));
          const part = library.view(context, matrix.tensor, width, count, stride, range.startRow * stride);
          const product = library.multiply(context, part, wide);
          return {
            inputs: [leaf],
            outputs: [product],
            upload: () => library.tensorSet(leaf, rowsIn, 0, rowsIn.byteLength),
            download: () => library.tensorGet(product, rowsOut, 0, rowsOut.byteLength),
          };
        });
      }
    },
    close: () => matrix.close(),
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
  const place = checkPlacement(layout, layout.layers, positions.length, rows, undefined);
  const width = layoutWidth(layout);
  checkValues('out', out, positions.length, width);
  await withRope(device, rope, async (prepared) => {
    for (const slice of slices(positions.length)) {
      const { startToken, tokens } = slice;
      const part = out.subarray(startToken * width, (startToken + tokens) * width);
      await device.runAlone((graph) => {
        const { library } = graph;
        const { leaves, values } = readRowsGraph(graph, layout, prepared, tokens);
        return {
          inputs: [leaves.rows, leaves.positions],
          outputs: [values],
          upload: () => {
            uploadRows(library, leaves, layout, rows, place, slice);
            if (prepared !== null) uploadPositions(library, leaves, positions, tokensOf(slice));
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
  const place = checkPlacement(layout, layout.layers, positions.length, out, undefined);
  const width = layoutWidth(layout);
  checkValues('values', values, positions.length, width);
  await withRope(device, rope, async (prepared) => {
    for (const slice of slices(positions.length)) {
      const { startToken, tokens } = slice;
      const part = values.subarray(startToken * width, (startToken + tokens) * width);
      await device.runAlone((graph) => {
        const { library } = graph;
        const leaf = graph.tensor('f32', width, tokens);
        const leaves = writeRowsGraph(graph, layout, layout.layers, prepared, leaf, tokens);
        return {
          inputs: [leaf, leaves.positions],
          outputs: [leaves.rows],
          upload: () => {
            library.tensorSet(leaf, part, 0, part.byteLength);
            if (prepared !== null) uploadPositions(library, leaves, positions, tokensOf(slice));
          },
          download: () => downloadRows(library, leaves, layout, layout.layers, out, place, tokensOf(slice)),
        };
      });
    }
  });
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
