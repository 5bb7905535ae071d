// Series of rows, and what one codec reaches at another's losses.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { equalQuality, equalRatioText } from './equal-quality.ts';
import type { Evaluation } from './evaluate.ts';
import { exactTokensText, seriesNames, seriesOf } from './series.ts';
import type { EvaluationRow } from './summary.ts';

function row(
  treatment: string,
  paperRatio: number,
  klNats: number,
  copyKlNats: number,
  series?: string,
): EvaluationRow {
  const ratio = Number(/([\d.]+)x/u.exec(treatment)?.[1] ?? NaN);
  const effectiveRatio = paperRatio / 2;
  return {
    treatment,
    ratio,
    paperRatio,
    effectiveRatio,
    klNats,
    copyKlNats,
    ...(series ? { series } : {}),
  } as EvaluationRow;
}

describe('equalQuality', () => {
  const paper = [row('kvtc 8x', 9, 0.003, 0.015), row('kvtc 16x', 18, 0.01, 0.05), row('kvtc 64x', 65, 0.2, 2)];
  const wtc = [8, 16, 32, 64].map((ratio) => row(`wtc ${ratio}x`, ratio, 0.0001 * ratio, 0.0009 * ratio, 'wtc'));
  const alone = [row('kvtc 16x sinks 0', 19, 0.5, 0.5), row('q4_0', 3, 0.1, 0.1)];

  it('gives the ratio at which the worse of both losses is no worse', () => {
    const found = equalQuality([...paper, ...wtc, ...alone]);
    assert.deepEqual(
      found.map(({ series, against, paperRatio }) => [series, against.treatment, paperRatio.relation]),
      [
        ['wtc', 'kvtc 8x', 'equal'],
        ['wtc', 'kvtc 16x', 'equal'],
        ['wtc', 'kvtc 64x', 'atLeast'],
      ],
    );
    // Copying is the tighter: 0.015 / 0.0009 and 0.05 / 0.0009, where prediction would allow 30 and 100.
    const [first, second, third] = found.map(({ paperRatio }) => paperRatio.ratio);
    assert.ok(Math.abs((first ?? 0) - 0.015 / 0.0009) < 1e-9);
    assert.ok(Math.abs((second ?? 0) - 0.05 / 0.0009) < 1e-9);
    assert.equal(third, 64);
    assert.ok(Math.abs((found[1]?.effectiveRatio.ratio ?? 0) - 0.05 / 0.0009 / 2) < 1e-9);
  });

  it('is below all measured ratios when one loss is never reached', () => {
    const bad = wtc.map((one) => ({ ...one, copyKlNats: 1 }));
    assert.deepEqual(equalQuality([...paper.slice(0, 1), ...bad])[0]?.paperRatio, { relation: 'below', ratio: 8 });
  });

  it('tells apart up to which measured ratio retrieval is no worse, where that task was run', () => {
    const answering = (one: EvaluationRow, correct: number): EvaluationRow =>
      ({ ...one, tasks: { kv: { questions: 20, exactCorrect: 18, correct } } }) as unknown as EvaluationRow;
    const found = (kept: readonly number[], wanted: number) =>
      equalQuality([
        answering(row('kvtc 16x', 18, 0.01, 0.05), wanted),
        ...wtc.map((one, i) => answering(one, kept[i] ?? 0)),
      ])[0]?.retrievalRatio;
    assert.deepEqual(found([18, 17, 12, 17], 17), { relation: 'equal', ratio: 16 });
    assert.deepEqual(found([18, 17, 17, 17], 17), { relation: 'atLeast', ratio: 64 });
    assert.deepEqual(found([16, 18, 18, 18], 17), { relation: 'below', ratio: 8 });
    assert.equal(equalQuality([...paper, ...wtc])[0]?.retrievalRatio, null);
    const unknown = [...paper, ...wtc].map(
      (one) => ({ ...one, tasks: { kv: { questions: 20, exactCorrect: 0, correct: 0 } } }) as unknown as EvaluationRow,
    );
    assert.equal(equalQuality(unknown)[0]?.retrievalRatio, null);
  });

  it('is written with its bound', () => {
    assert.deepEqual(
      ['equal', 'atLeast', 'below'].map((relation) => equalRatioText({ relation: relation as 'equal', ratio: 39.16 })),
      ['39.2', '> 39.2', '< 39.2'],
    );
  });

  it('is empty without the published codec or without another', () => {
    assert.deepEqual(equalQuality(wtc), []);
    assert.deepEqual(equalQuality([...paper, ...alone]), []);
  });
});

describe('series', () => {
  it('are told by the rows, and by names in results of earlier versions', () => {
    const name = (treatment: string): string | null => seriesOf({ treatment });
    assert.deepEqual(
      ['kvtc 16x', 'wtc 16x', 'wtc 64x window exact', 'kvtc 16x sinks 0', 'floor', 'per-head PCA 6x'].map(name),
      ['kvtc', 'wtc', 'wtc window exact', null, null, null],
    );
    assert.deepEqual(seriesNames([row('a', 1, 1, 1, 'x'), row('b', 1, 1, 1), row('c', 1, 1, 1, 'x')]), ['x']);
  });

  it('say what the sinks and the window get', () => {
    const settings = { profileId: 'p', sinks: 4, window: 128 } as Evaluation['settings'];
    const one = { id: 'p', ratios: [] };
    const kvtc = { ...one, name: 'kvtc', codec: 'kvtc-paper', windowMode: 'exact' } as const;
    const wtc = { ...one, name: 'wtc', codec: 'wtc', windowMode: 'finer' } as const;
    const newer = { ...wtc, name: 'newer', sinkMode: 'finer' } as const;
    assert.deepEqual(
      [
        settings,
        { ...settings, profiles: [wtc] },
        { ...settings, profiles: [kvtc, wtc] },
        { ...settings, profiles: [kvtc, newer] },
        { ...settings, window: 0 },
      ].map((given) => exactTokensText({ settings: given })),
      [
        '4 sinks and window of 128 exact',
        '4 sinks exact, window of 128 coded finer',
        '4 sinks exact, window of 128 exact (kvtc), coded finer (wtc)',
        '4 sinks exact (kvtc), first of 4 sinks exact (newer), window of 128 exact (kvtc), coded finer (newer)',
        '4 sinks exact, no window',
      ],
    );
  });
});
