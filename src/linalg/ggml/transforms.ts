// A stream's affine transform on ggml: analysis (rows → coefficients) and synthesis (coefficients → rows), each one
// graph per slice of tokens. Does not know: plans, quantisers, engines' state formats.

import type { Analysis, Synthesis, TransformSpec } from '../backend.ts';
import { checkLayers, checkPlacement, checkSpec, checkValues, layoutWidth, rowWidth } from '../shapes.ts';
import type { ConstantTensor, GgmlDevice } from './device.ts';
import { GGML_TYPE } from './library.ts';
import { loadMatrix, loadTransposed, loadVector, padded } from './matrix.ts';
import {
  SLICE_TOKENS,
  downloadRows,
  prepareRope,
  readRowsGraph,
  slices,
  uploadPositions,
  uploadRows,
  writeRowsGraph,
} from './stages.ts';
import type { PreparedRope } from './stages.ts';

/** c = (unrope(rows) − mean) · analysisᵀ. */
export async function prepareAnalysis(device: GgmlDevice, spec: TransformSpec): Promise<Analysis> {
  const { layout, precision, analysis } = spec;
  checkSpec(spec);
  const rank = analysis.rows;
  const width = layoutWidth(layout);
  const wide = padded(width);
  const held = await loadAll(device, spec, () => loadMatrix(device, analysis, precision));
  return {
    rank,
    async project(rows, positions, out, placement) {
      const totalTokens = positions.length;
      const place = checkPlacement(layout, layout.layers, totalTokens, rows, placement);
      checkValues('coefficients', out, totalTokens, rank);
      const sums = new Float32Array(SLICE_TOKENS);
      for (const slice of slices(totalTokens)) {
        const { startToken, tokens } = slice;
        const part = out.subarray(startToken * rank, (startToken + tokens) * rank);
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
              uploadRows(library, leaves, layout, rows, place, slice);
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
    close: () => held.close(),
  };
}

/** rows = rope(c · synthesis + mean); a layer range takes a contiguous run of the transposed matrix's rows. */
export async function prepareSynthesis(device: GgmlDevice, spec: TransformSpec): Promise<Synthesis> {
  const { layout, precision, synthesis } = spec;
  checkSpec(spec);
  const rank = synthesis.rows;
  const wide = padded(rank);
  const held = await loadAll(device, spec, () => loadTransposed(device, synthesis, precision));
  return {
    rank,
    async reconstruct(coefficients, positions, range, out, placement) {
      checkLayers(layout, range);
      const layers = range.endLayer - range.startLayer;
      const totalTokens = positions.length;
      checkValues('coefficients', coefficients, totalTokens, rank);
      const place = checkPlacement(layout, layers, totalTokens, out, placement);
      const width = layers * rowWidth(layout);
      const offset = range.startLayer * rowWidth(layout);
      for (const slice of slices(totalTokens)) {
        const { startToken, tokens } = slice;
        const part = coefficients.subarray(startToken * rank, (startToken + tokens) * rank);
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
            download: () => downloadRows(library, leaves, layout, layers, out, place, slice),
          };
        });
      }
    },
    close: () => held.close(),
  };
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
