import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { seededRandom } from '../base/random.ts';
import { triangleSize } from '../linalg/dense.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import type { DocumentRows } from './collect.ts';
import { accumulateMoments, covarianceMatrix, createMoments, fitMomentsFrame, meanOf } from './moments.ts';
import type { Moments } from './moments.ts';
import type { EmbeddingSource } from './token-means.ts';
import { embeddingWidth, splitMoments, withEmbeddings } from './token-moments.ts';

const backend = openGgmlBackend({ threads: 1 });
after(() => backend.close());

const SINKS = 2;
const TOKENS = 40;
const WIDTH = 3;
const geometry = { layers: 2, kvHeads: 1, keyHeadDim: 4, valueHeadDim: 2 };
const widths = { key: 8, value: 4 };
const vocabulary = Array.from({ length: 9 }, (_, id) => [id + 1, 2 - id, id % 2]);
const embeddings: EmbeddingSource = (ids) =>
  Promise.resolve(Float32Array.from([...ids].flatMap((id) => vocabulary[id] ?? [])));

const random = seededRandom(5);
const documents = ['first', 'second', 'third'].map((source) => ({
  group: 'made up',
  source,
  sha256: source,
  tokens: Int32Array.from({ length: TOKENS }, () => random.below(vocabulary.length)),
}));
/** Rows that move with the token's own id, so that products with its embedding are far from those of their means. */
const plain = new Map<string, DocumentRows>(
  documents.map(({ source, tokens }) => {
    const make = (width: number): Float32Array =>
      Float32Array.from({ length: (TOKENS - SINKS) * width }, (_, i) => {
        const id = tokens[SINKS + Math.floor(i / width)]!;
        return 5 + (i % width) + id * (i % 3) + random.normal();
      });
    return [source, { rowCount: TOKENS - SINKS, key: make(widths.key), value: make(widths.value) }];
  }),
);

/** f64[6]: own and predecessor's embedding, each over its root mean square. */
function featuresAt(tokens: Int32Array, t: number): number[] {
  return [t, t - 1].flatMap((at) => {
    const values = vocabulary[tokens[at]!]!;
    const size = Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / WIDTH);
    return values.map((value) => value / size);
  });
}

const wide: Partial<Record<StreamKind, Moments>> = {};
const rows = withEmbeddings((document) => Promise.resolve(plain.get(document.source)!), embeddings, geometry);
for (const document of documents) {
  const found = await rows(document, {});
  for (const stream of STREAMS) {
    const p = widths[stream] + 2 * WIDTH;
    wide[stream] ??= createMoments(fitMomentsFrame(found[stream], found.rowCount, p, stream));
    await accumulateMoments(wide[stream], found[stream], found.rowCount, { backend, precision: 'f32' });
  }
}
const { moments, tokens } = splitMoments(wide as Record<StreamKind, Moments>, await embeddingWidth(embeddings));

const near = (got: number, expected: number, what: string): void =>
  assert.ok(Math.abs(got - expected) < 1e-3 * Math.max(1, Math.abs(expected)), `${what}: ${got}, not ${expected}`);

test('moments of rows are those that rows alone have', async () => {
  for (const stream of STREAMS) {
    const p = widths[stream];
    const alone = createMoments(fitMomentsFrame(plain.get('first')![stream], TOKENS - SINKS, p, 'alone'));
    for (const { source } of documents) {
      await accumulateMoments(alone, plain.get(source)![stream], TOKENS - SINKS, { backend, precision: 'f32' });
    }
    assert.equal(moments[stream].frame.width, p);
    assert.equal(moments[stream].rows, alone.rows);
    const read = async (of: Moments): Promise<Float32Array> => {
      const out = new Float32Array(p * p);
      await covarianceMatrix(of).read(0, p, out);
      return out;
    };
    const [got, expected] = [await read(moments[stream]), await read(alone)];
    for (let i = 0; i < p * p; i++) near(got[i]!, expected[i]!, `${stream} covariance ${i}`);
    const means = meanOf(alone);
    for (const [i, mean] of meanOf(moments[stream]).entries()) near(mean, means[i]!, `${stream} mean ${i}`);
  }
});

test('moments of embeddings, alone and with rows, are plain means of products', () => {
  const all = documents.flatMap(({ source, tokens: ids }) =>
    Array.from({ length: TOKENS - SINKS }, (_, r) => ({ source, r, u: featuresAt(ids, SINKS + r) })),
  );
  const mean = (of: (one: (typeof all)[number]) => number): number =>
    all.reduce((sum, one) => sum + of(one), 0) / all.length;
  assert.equal(tokens.width, WIDTH);
  for (let f = 0; f < 2 * WIDTH; f++) {
    near(
      tokens.mean[f]!,
      mean(({ u }) => u[f]!),
      `mean ${f}`,
    );
    for (let g = 0; g <= f; g++) {
      near(
        tokens.second[triangleSize(f) + g]!,
        mean(({ u }) => u[f]! * u[g]!),
        `second ${f}, ${g}`,
      );
    }
    for (const stream of STREAMS) {
      const p = widths[stream];
      const { shift } = moments[stream].frame;
      for (let i = 0; i < p; i++) {
        const expected = mean(({ source, r, u }) => (plain.get(source)![stream][r * p + i]! - shift[i]!) * u[f]!);
        near(tokens.cross[stream][i * 2 * WIDTH + f]!, expected, `${stream} ${i} with ${f}`);
      }
    }
  }
});

test('the first token of a document has no predecessor', async () => {
  const [document] = documents;
  const whole = { rowCount: TOKENS, key: new Float32Array(TOKENS * 8), value: new Float32Array(TOKENS * 4) };
  const found = await withEmbeddings(() => Promise.resolve(whole), embeddings, geometry)(document!, {});
  assert.deepEqual([...found.value.subarray(4 + WIDTH, 4 + 2 * WIDTH)], [0, 0, 0]);
  assert.notDeepEqual([...found.value.subarray(4, 4 + WIDTH)], [0, 0, 0]);
});
