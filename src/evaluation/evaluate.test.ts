// The evaluation on a tiny model with random weights, through the real engine, calibration and codec.

import assert from 'node:assert/strict';
import { copyFile, mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { writeTinyModel } from '../../test/tiny-gguf.ts';
import { isKvtcError } from '../base/errors.ts';
import type { KvtcEvent } from '../base/events.ts';
import { seededRandom } from '../base/random.ts';
import { calibrate } from '../cache/calibrate.ts';
import { readGguf } from '../engines/llama/gguf.ts';
import { openModel, quantizeModel } from '../engines/llama/session.ts';
import type { EvaluateOptions, Evaluation } from './evaluate.ts';
import { evaluate } from './evaluate.ts';
import { exactWeights } from './exact-weights.ts';
import { meanScores } from './metrics.ts';
import { createReference, decodedTokens, runDocument } from './protocol.ts';
import { evictionTreatment, rowRivals, truncationTreatment } from './rivals/treatments.ts';
import type { DocumentResult } from './run-file.ts';
import type { Treatment } from './treatment.ts';
import { exactTreatment, floorTreatment } from './treatment.ts';

const SHAPE = { prefixTokens: 384, continuationTokens: 130, copyTokens: 100, sliceTokens: 64 };
let folder = '';
let modelPath = '';
let profilePath = '';
let wtcPath = '';

/** Words of a small invented language, so that there is something to learn. */
function textOf(seed: number, words: number): string {
  const random = seededRandom(seed);
  const lexicon = Array.from({ length: 60 }, (_, i) => `w${(i * 7919).toString(36)}`);
  return Array.from({ length: words }, () => lexicon[Math.floor(60 * random.uniform() ** 2)]).join(' ');
}

const TEXTS = [
  { source: 'a', kind: 'one', text: textOf(1, 800) },
  { source: 'b', kind: 'two', text: textOf(2, 800) },
];

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-evaluate-'));
  modelPath = join(folder, 'tiny.gguf');
  profilePath = join(folder, 'tiny.profile.safetensors');
  await writeTinyModel(modelPath, 'llama');
  wtcPath = join(folder, 'tiny.wtc.profile.safetensors');
  const calibration = {
    model: modelPath,
    texts: [{ name: 'train', texts: [{ source: 't', text: textOf(3, 3000) }] }],
    tokens: 6000,
    documentTokens: 512,
    rank: 96,
    threads: 1,
    codec: 'paper',
  } as const;
  await calibrate({ ...calibration, output: profilePath, ratios: [4, 16] });
  await calibrate({ ...calibration, output: wtcPath, codec: 'wtc', sensitivity: 'none' });
});
after(() => rm(folder, { recursive: true, force: true }));

/** Clears the low byte of most values: a codec that loses much. */
const ruiningTreatment: Treatment = {
  ...exactTreatment,
  label: 'ruined',
  apply: async (state, tokens, options) => {
    const { state: floored, ...rest } = await floorTreatment.apply(state, tokens, options);
    return { ...rest, state: floored.map((byte, i) => (byte === state[i] ? byte : 0)) };
  },
};

async function runTiny(treatments: readonly Treatment[]): Promise<Map<string, DocumentResult>> {
  const model = await openModel(modelPath, { threads: 1 });
  try {
    const context = await model.createContext({ contextTokens: 640, batchTokens: 512 });
    const tokens = model.tokenize(textOf(4, 800), { addSpecial: false }).slice(0, 514);
    const results = new Map<string, DocumentResult>();
    let decoded = 0;
    await runDocument({ kind: 'k', source: 's', sha256: 'x', tokens }, treatments, {
      context,
      shape: SHAPE,
      reference: createReference(SHAPE, model.vocabSize),
      onResult: async (treatment, result) => void results.set(treatment.label, result),
      onDecoded: (count) => (decoded += count),
    });
    assert.equal(decoded, decodedTokens(SHAPE, treatments.length));
    return results;
  } finally {
    model.close();
  }
}

describe('the protocol', () => {
  it('gives 0 nats and the same likelihoods for an exact cache, little for the floor, more for a ruined one', async () => {
    const results = await runTiny([exactTreatment, floorTreatment, ruiningTreatment]);
    const exact = results.get('exact') as DocumentResult;
    assert.equal(exact.continuation.klSum, 0);
    assert.equal(exact.copy.klSum, 0);
    assert.deepEqual(exact.continuation, exact.continuationExact);
    assert.deepEqual(exact.copy, exact.copyExact);
    assert.deepEqual([exact.continuation.rows, exact.continuation.targets], [130, 129]);
    assert.deepEqual([exact.copy.rows, exact.copy.targets], [92, 91]);
    const [floor, ruined] = ['floor', 'ruined'].map((label) =>
      meanScores((results.get(label) as DocumentResult).continuation),
    );
    assert.ok((floor?.klNats ?? 0) > 1e-9, `floor ${floor?.klNats}`);
    assert.ok((ruined?.klNats ?? 0) > 100 * (floor?.klNats ?? 0), `floor ${floor?.klNats}, ruined ${ruined?.klNats}`);
  });

  it('ranks rivals on rows as their damage says, and takes caches with holes', async () => {
    const geometry = { layers: 3, kvHeads: 2, keyHeadDim: 16, valueHeadDim: 16 };
    const rivals = [...rowRivals(geometry), evictionTreatment(geometry, 16)];
    const results = await runTiny(rivals);
    const kl = (label: string): number => meanScores((results.get(label) as DocumentResult).continuation).klNats;
    assert.ok(kl('q8_0 on rows') < kl('q4_1 on rows'));
    assert.ok(kl('q4_1 on rows') < kl('KIVI 2 bit'));
    assert.ok(kl('KIVI 4 bit') < kl('KIVI 2 bit'));
    assert.ok(kl('KIVI 2 bit') < kl('recency eviction 16x'));
  });
});

describe('evaluate', () => {
  const run = (options: Partial<EvaluateOptions> = {}): Promise<Evaluation> =>
    evaluate({
      modelPath,
      profilePath,
      texts: TEXTS,
      prefixTokens: 384,
      continuationTokens: 130,
      documents: 3,
      window: 32,
      threads: 1,
      cacheDirectory: join(folder, 'cache'),
      ...options,
    });
  const figures = ({ rows, floor }: Evaluation) =>
    [floor, ...rows].map(({ treatment, klNats, copyKlNats, paperRatio }) => [
      treatment,
      klNats,
      copyKlNats,
      paperRatio,
    ]);

  it('gives a row per ratio of the profile, kinds apart, and the floor', async () => {
    const { rows, floor, settings, engineMs, elapsedMs } = await run();
    assert.ok(engineMs > 0 && engineMs < elapsedMs, `${engineMs} of ${elapsedMs}`);
    assert.deepEqual(
      rows.map(({ treatment, ratio }) => [treatment, ratio]),
      [
        ['kvtc 4x window 32', 4],
        ['kvtc 16x window 32', 16],
      ],
    );
    const [low, high] = rows;
    assert.ok(low !== undefined && high !== undefined);
    assert.ok(floor.klNats < low.klNats && low.klNats < high.klNats, `${floor.klNats} ${low.klNats} ${high.klNats}`);
    assert.ok((low.paperRatio ?? 0) > 3 && (high.paperRatio ?? 0) > 2 * (low.paperRatio ?? 0));
    assert.ok((high.effectiveRatio ?? 99) < (high.paperRatio ?? 0), 'the window counts');
    assert.deepEqual(
      settings.documents.map(({ kind }) => kind),
      ['one', 'two', 'one'],
    );
    assert.deepEqual([low.byKind['one']?.documents, low.byKind['two']?.documents, low.documents], [2, 1, 3]);
    assert.equal(settings.weights, 'f32');
    assert.equal(settings.copyTokens, 256);
  });

  it('judges profiles of both codecs side by side, each at the ratios it serves, on one prefill', async () => {
    let total = 0;
    const onEvent = (event: KvtcEvent): void => {
      if (event.type === 'progress' && event.phase === 'evaluate') total = event.total;
    };
    const options = { alsoProfilePaths: [wtcPath], ratios: [4, 8, 16], documents: 1, onEvent };
    const { rows, settings } = await run(options);
    assert.deepEqual(
      rows.map(({ treatment, series, ratio }) => [treatment, series, ratio]),
      [
        ['kvtc 4x window 32', 'kvtc window 32', 4],
        ['kvtc 16x window 32', 'kvtc window 32', 16],
        ['wtc 8x window 32', 'wtc window 32', 8],
        ['wtc 16x window 32', 'wtc window 32', 16],
      ],
    );
    assert.deepEqual(
      settings.profiles?.map(({ name, codec, windowMode, ratios }) => [name, codec, windowMode, ratios]),
      [
        ['kvtc', 'kvtc-paper', 'exact', [4, 16]],
        ['wtc', 'wtc', 'finer', [8, 16]],
      ],
    );
    assert.equal(total, decodedTokens({ ...SHAPE, copyTokens: 256 }, 5));
    const [, paper, , wtc] = rows;
    // wtc's window is coded: every byte counts almost as much as the paper's count says.
    assert.ok((wtc?.effectiveRatio ?? 0) > 1.5 * (paper?.effectiveRatio ?? 0));
    assert.ok((wtc?.paperRatio ?? 9) < (paper?.paperRatio ?? 0), 'the finer window is not left out');
  });

  it('keeps the window of wtc exact on request, and tells profiles of one codec apart by their files', async () => {
    const other = join(folder, 'other.wtc.safetensors');
    await copyFile(wtcPath, other);
    const options = { profilePath: wtcPath, ratios: [16], documents: 1, windowMode: 'exact' } as const;
    const { rows, settings } = await run({ ...options, alsoProfilePaths: [other] });
    assert.deepEqual(
      rows.map(({ treatment }) => treatment),
      ['wtc tiny.wtc 16x window 32 window exact', 'wtc other.wtc 16x window 32 window exact'],
    );
    assert.deepEqual(
      settings.profiles?.map(({ windowMode }) => windowMode),
      ['exact', 'exact'],
    );
    const [one] = rows;
    assert.ok((one?.paperRatio ?? 0) > 1.5 * (one?.effectiveRatio ?? 99), 'the exact window is left out of one ratio');
    await assert.rejects(run({ ...options, alsoProfilePaths: [wtcPath] }), (error) =>
      isKvtcError(error, 'KVTC_OPTION_INVALID'),
    );
  });

  it('takes further treatments, truncation of the profile’s own basis among them', async () => {
    const { rows } = await run({
      documents: 1,
      ratios: [16],
      treatments: ({ transforms }) => [2, 16].map((ratio) => truncationTreatment(transforms, { ratio, window: 32 })),
    });
    const [kvtc, mild, harsh] = rows;
    assert.ok((mild?.klNats ?? 9) < (harsh?.klNats ?? 0), `${mild?.klNats} ${harsh?.klNats}`);
    assert.ok((kvtc?.klNats ?? 9) < (harsh?.klNats ?? 0));
    // 352 of 384 tokens are outside the window; 4 sinks are kept at 16 bit.
    assert.ok(Math.abs((mild?.paperRatio ?? 0) - 352 / (348 / 2 + 4)) < 1e-9);
  });

  it('takes the rivals on rows, per-head PCA among them, and counts what they store', async () => {
    const { rows } = await run({ documents: 2, ratios: [4], rivals: ['rows'] });
    const find = (label: string) => {
      const row = rows.find(({ treatment }) => treatment === label);
      assert.ok(row !== undefined, label);
      return row;
    };
    const [fine, coarse] = [find('per-head PCA 6x'), find('per-head PCA 16x')];
    assert.ok(fine.klNats < coarse.klNats && (fine.paperRatio ?? 9) < (coarse.paperRatio ?? 0));
    // Minima and steps of all components and the sinks cost something, the entropy stage gives something back.
    assert.ok((fine.paperRatio ?? 0) > 4.5 && (fine.paperRatio ?? 99) < 12, `${fine.paperRatio}`);
    assert.ok(Math.abs((find('q4_0 on rows').paperRatio ?? 0) - 32 / 9) < 1e-9);
    assert.ok((find('recency eviction 16x').paperRatio ?? 0) === 16);
    await assert.rejects(run({ documents: 1, rivals: ['native'] }), (error) =>
      isKvtcError(error, 'KVTC_MODEL_UNSUPPORTED'),
    );
  });

  it('goes on where it was interrupted, and measures nothing twice', async () => {
    const runPath = join(folder, 'run.jsonl');
    const controller = new AbortController();
    const perDocument = decodedTokens({ ...SHAPE, copyTokens: 256 }, 3);
    const stop = (event: KvtcEvent): void => {
      if (event.type === 'progress' && event.phase === 'evaluate' && event.done > 1.5 * perDocument) controller.abort();
    };
    await assert.rejects(run({ runPath, signal: controller.signal, onEvent: stop }), (error) =>
      isKvtcError(error, 'KVTC_ABORTED'),
    );
    const kept = (await readFile(runPath, 'utf8')).trimEnd().split('\n').length;
    assert.ok(kept >= 3 && kept < 9, `${kept} results kept`);
    const totals: number[] = [];
    const onEvent = (event: KvtcEvent): void => {
      if (event.type === 'progress' && event.phase === 'evaluate') totals.push(event.total, event.done);
    };
    const resumed = await run({ runPath, onEvent });
    assert.equal(totals.at(-1), totals.at(-2), 'progress ends at its total');
    assert.ok((totals[0] ?? 0) > 0 && (totals[0] ?? 0) <= 2 * perDocument, `${totals[0]} tokens left`);
    assert.equal((await readFile(runPath, 'utf8')).trimEnd().split('\n').length, 9);
    totals.length = 0;
    const again = await run({ runPath, onEvent });
    assert.deepEqual(totals, [0, 0]);
    assert.deepEqual(figures(again), figures(resumed));
    assert.deepEqual(figures(await run()), figures(resumed), 'a whole run gives what the resumed one gave');
    const other = await run({ runPath, window: 64, documents: 1, onEvent });
    assert.ok((totals.at(-1) ?? 0) > 0, 'other settings are other results');
    assert.notDeepEqual(figures(other), figures(again));
  });

  it('refuses a profile of another model, ratios without plan, and shapes that do not fit', async () => {
    const other = join(folder, 'other.gguf');
    await writeTinyModel(other, 'qwen2');
    for (const [options, code] of [
      [{ modelPath: other }, 'KVTC_MODEL_MISMATCH'],
      [{ ratios: [5] }, 'KVTC_PLAN_MISSING'],
      [{ ratios: [16, 5], alsoProfilePaths: [profilePath] }, 'KVTC_PLAN_MISSING'],
      [{ ratios: [4], alsoProfilePaths: [wtcPath] }, 'KVTC_PLAN_MISSING'],
      [{ windowMode: 'finer' }, 'KVTC_OPTION_INVALID'],
      [{ alsoProfilePaths: [join(folder, 'none')] }, 'KVTC_FILE_NOT_FOUND'],
      [{ texts: [] }, 'KVTC_PROMPT_EMPTY'],
      [{ copyTokens: 300 }, 'KVTC_OPTION_INVALID'],
      [{ continuationTokens: 1 }, 'KVTC_OPTION_INVALID'],
      [{ documents: 0 }, 'KVTC_OPTION_INVALID'],
      [{ signal: AbortSignal.abort() }, 'KVTC_ABORTED'],
    ] as const) {
      await assert.rejects(run(options), (error) => isKvtcError(error, code), code);
    }
  });
});

describe('exactWeights', () => {
  it('takes a file of f32 weights as it is, and makes one f32 copy of any other', async () => {
    assert.deepEqual(await exactWeights(modelPath, join(folder, 'exact')), {
      path: modelPath,
      type: 'f32',
      copied: false,
    });
    const halfPath = join(folder, 'half.gguf');
    await quantizeModel(modelPath, halfPath, 'f16');
    const copy = await exactWeights(halfPath, join(folder, 'exact'));
    assert.deepEqual([copy.type, copy.copied], ['f32', true]);
    const { tensors } = await readGguf(copy.path);
    assert.deepEqual([...new Set([...tensors.values()].map(({ type }) => type))], ['f32']);
    assert.deepEqual(await exactWeights(halfPath, join(folder, 'exact')), copy);
    assert.equal((await readdir(join(folder, 'exact'))).length, 1);
  });

  it('leaves a missing model to the reader’s error', async () => {
    await assert.rejects(exactWeights(join(folder, 'none.gguf'), join(folder, 'exact')), (error) =>
      isKvtcError(error, 'KVTC_FILE_NOT_FOUND'),
    );
  });
});
