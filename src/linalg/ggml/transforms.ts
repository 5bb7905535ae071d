// A stream's affine transform on ggml: analysis (rows → coefficients) and synthesis (coefficients → rows), each one
// graph per slice of tokens. Does not know: plans, quantisers, engines' state formats.

import type { Analysis, Coefficients, Synthesis, TransformSpec } from '../backend.ts';
import { padded } from '../backend.ts';
import {
  checkCoefficients,
  checkLayers,
  checkPlacement,
  checkSpec,
  checkValues,
  layoutWidth,
  rowWidth,
} from '../shapes.ts';
import type { ConstantTensor, GgmlDevice } from './device.ts';
import { GGML_TYPE } from './library.ts';
import type { GgmlLibrary, Pointer } from './library.ts';
import { loadMatrix, loadTransposed, loadVector } from './matrix.ts';
import {
  SLICE_TOKENS,
  downloadRows,
  eachRun,
  prepareRope,
  readRowsGraph,
  slices,
  tokensOf,
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
              if (held.rope !== null) uploadPositions(library, leaves, positions, tokensOf(slice));
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
      checkCoefficients(coefficients, totalTokens, rank);
      const place = checkPlacement(layout, layers, totalTokens, out, placement);
      const width = layers * rowWidth(layout);
      const offset = range.startLayer * rowWidth(layout);
      const multiplyBatch = ({ tokens, terms }: Batch): Promise<void> =>
        device.run((graph) => {
          const { library, context } = graph;
          const known = Math.min(rank, terms);
          const leaf = graph.tensor('f32', known, tokens.length);
          const x = known === terms ? leaf : library.pad(context, leaf, terms - known, 0, 0, 0);
          const stride = Number(library.rowBytes(GGML_TYPE[precision], wide));
          const matrix = library.view(context, held.matrix.tensor, terms, width, stride, offset * stride);
          const mean = library.view(context, held.mean.tensor, width, 1, width * 4, offset * 4);
          const values = library.add(context, library.multiply(context, matrix, x), mean);
          const leaves = writeRowsGraph(graph, layout, layers, held.rope, values, tokens.length);
          return {
            inputs: [leaf, leaves.positions],
            outputs: [leaves.rows],
            upload: () => {
              uploadTerms(library, leaf, coefficients.values, rank, tokens, known);
              if (held.rope !== null) uploadPositions(library, leaves, positions, tokens);
            },
            download: () => downloadRows(library, leaves, layout, layers, out, place, tokens),
          };
        });
      // Side by side, so that the last batches of a call leave no core without work.
      await Promise.all(batches(coefficients, totalTokens, wide).map(multiplyBatch));
    },
    close: () => held.close(),
  };
}

/** Tokens of one graph, in rising order, and how many coefficients of each it multiplies: whole blocks of the matrix. */
interface Batch {
  readonly tokens: Int32Array;
  readonly terms: number;
}

/**
 * Tokens with about as many coefficients go together, so that one with many does not make others multiply zeros; where
 * nothing is known of that, neighbours do.
 */
function batches({ leading }: Coefficients, totalTokens: number, wide: number): Batch[] {
  if (leading === undefined) return slices(totalTokens).map((slice) => ({ tokens: tokensOf(slice), terms: wide }));
  const order = Int32Array.from(leading.keys()).toSorted((a, b) => leading[b]! - leading[a]!);
  return slices(totalTokens).map(({ startToken, tokens }) => {
    const most = leading[order[startToken]!]!;
    return { tokens: order.slice(startToken, startToken + tokens).toSorted(), terms: padded(Math.max(1, most)) };
  });
}

/** Copies the leading terms of the given tokens, in rising order, from f32[tokens, rank] into a leaf [terms, tokens]. */
function uploadTerms(
  library: GgmlLibrary,
  leaf: Pointer,
  values: Float32Array,
  rank: number,
  tokens: Int32Array,
  terms: number,
): void {
  eachRun(tokens, (first, end) => {
    const from = values.subarray(tokens[first]! * rank);
    library.tensorSet2d(leaf, from, first * terms * 4, terms * 4, end - first, terms * 4, rank * 4);
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
