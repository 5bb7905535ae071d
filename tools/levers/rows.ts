// Coefficients of held-out documents under a wtc profile: what levers are estimated on. Does not know: quantisers.

import { STREAMS } from '../../src/base/geometry.ts';
import type { StreamKind } from '../../src/base/geometry.ts';
import { openTransforms } from '../../src/cache/transforms.ts';
import { predictTokenClasses } from '../../src/calibration/token-steps.ts';
import { gatherRows, parseState, rowBytesOf } from '../../src/engines/llama/state.ts';
import { openModel } from '../../src/engines/llama/session.ts';
import { cutDocuments } from '../../src/evaluation/documents.ts';
import { openGgmlBackend } from '../../src/linalg/ggml/backend.ts';
import { heldOutTexts } from '../../src/models/corpus.ts';
import type { WtcProfile } from '../../src/profile/profile.ts';

/** The first tokens of each document are sinks, which no codec sees. */
const SINKS = 4;

/** One document's tokens after the sinks. */
export interface DocumentRows {
  readonly tokens: number;
  /** f32[tokens, profile.rank] */
  readonly coefficients: Readonly<Record<StreamKind, Float32Array>>;
  /** By the profile's predictor and its middle exponent; 0 without one. */
  readonly classes: Readonly<Record<StreamKind, Int8Array>>;
}

/** Prefills `count` held-out documents of `tokens` tokens and projects their caches. */
export async function documentRows(
  modelPath: string,
  profile: WtcProfile,
  count: number,
  tokens: number,
): Promise<DocumentRows[]> {
  const model = await openModel(modelPath);
  const backend = openGgmlBackend();
  const transforms = openTransforms(profile, backend, { model: modelPath });
  try {
    const tokenize = (text: string): Int32Array => model.tokenize(text, { addSpecial: false });
    const documents = await cutDocuments(await heldOutTexts(), { documentTokens: tokens, documents: count, tokenize });
    const context = await model.createContext({ contextTokens: tokens });
    const found: DocumentRows[] = [];
    for (const document of documents) {
      context.clear();
      await context.decode(document.tokens, { logits: 'none' });
      const view = parseState(context.getState());
      const range = { startToken: SINKS, endToken: tokens };
      const layers = { startLayer: 0, endLayer: view.layers };
      const means = await transforms.means(document.tokens);
      const project = async (stream: StreamKind): Promise<Float32Array> => {
        const rows = new Uint8Array((tokens - SINKS) * view.layers * rowBytesOf(view, stream));
        gatherRows(view, stream, layers, range, rows);
        const rank = profile.rank[stream];
        const out = new Float32Array((tokens - SINKS) * rank);
        const analysis = await transforms.analysis(stream, rank, stream === 'key' ? view.keyType : view.valueType);
        await analysis.project(rows, view.positions.subarray(SINKS, tokens), out);
        return out;
      };
      const coefficients = { key: await project('key'), value: await project('value') };
      const classes = classesOf(profile, tokens - SINKS, coefficients);
      for (const stream of STREAMS) {
        const rank = profile.rank[stream];
        await means?.add(stream, range, coefficients[stream], { rank, components: rank }, -1);
      }
      found.push({ tokens: tokens - SINKS, coefficients, classes });
    }
    return found;
  } finally {
    transforms.close();
    backend.close();
    model.close();
  }
}

function classesOf(
  { predictor, steps }: WtcProfile,
  tokens: number,
  coefficients: DocumentRows['coefficients'],
): DocumentRows['classes'] {
  const exponent = steps[steps.length >> 1]?.exponent ?? 0;
  if (predictor !== null && exponent > 0) return predictTokenClasses(predictor, { tokens, ...coefficients }, exponent);
  const [key, value] = STREAMS.map(() => new Int8Array(tokens)) as [Int8Array, Int8Array];
  return { key, value };
}
