// A sensitivity of a tiny model, made up from a seed. Does not know what is tested with it.

import assert from 'node:assert/strict';
import { seededRandom } from '../src/base/random.ts';
import type { Sensitivity } from '../src/calibration/sensitivity-file.ts';
import { recencyAt } from '../src/calibration/token-steps.ts';
import { tinyText } from './tiny-world.ts';

/** Heads that matter more and more, and tokens whose importance is their id's and the larger the nearer they are to the end. */
export function madeUpSensitivity(
  model: { readonly architecture: string; readonly name: string; readonly geometry: Sensitivity['model']['geometry'] },
  tokenize: (text: string) => Int32Array,
): Sensitivity {
  const { geometry } = model;
  const heads = geometry.layers * geometry.kvHeads;
  const random = seededRandom(5);
  const metric = (dim: number): Sensitivity['metrics']['key'] => {
    const blocks = new Float32Array(heads * dim * dim);
    for (let h = 0; h < heads; h++) {
      for (let d = 0; d < dim; d++) blocks[(h * dim + d) * dim + d] = (h + 1) * (0.5 + random.uniform());
    }
    return { heads, headDim: dim, blocks };
  };
  const documentTokens = 512;
  const documents = 12;
  const ids = new Int32Array(documents * documentTokens);
  const importance = new Float32Array(ids.length).fill(NaN);
  for (let d = 0; d < documents; d++) {
    const document = tokenize(tinyText(documentTokens, 40 + d)).subarray(0, documentTokens);
    assert.equal(document.length, documentTokens);
    ids.set(document, d * documentTokens);
    for (let t = 4; t < documentTokens - 16; t++) {
      importance[d * documentTokens + t] =
        2 ** (3 * Math.sin((document[t] as number) * 1.7) + recencyAt(t, documentTokens));
    }
  }
  return {
    method: 'forward',
    producer: 'test',
    model: { architecture: model.architecture, name: model.name, fingerprint: null, geometry },
    settings: {},
    metrics: { key: metric(geometry.keyHeadDim), value: metric(geometry.valueHeadDim) },
    importance: {
      tokens: ids,
      documents,
      documentTokens,
      prefixTokens: documentTokens,
      key: importance,
      value: importance.slice(),
    },
  };
}
