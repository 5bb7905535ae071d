import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Scores } from './metrics.ts';
import type { DocumentResult } from './run-file.ts';
import { summarise } from './summary.ts';

const scores = (klSum: number, lossSum: number): Scores => ({
  rows: 10,
  klSum,
  agreements: 5,
  targets: 10,
  lossSum,
  hits: 2,
});

function resultOf(kind: string, klSum: number, paperRatio: number | null): DocumentResult {
  return {
    kind,
    source: 'a',
    continuation: scores(klSum, 10 * Math.log(2 + klSum)),
    continuationExact: scores(0, 10 * Math.log(2)),
    copy: scores(3 * klSum, 0),
    copyExact: scores(0, 0),
    paperRatio,
    effectiveRatio: paperRatio,
    storedBytes: paperRatio === null ? null : 120 / paperRatio,
    prefillMs: 8,
    compressMs: 2,
    restoreMs: 1,
    continueMs: 5,
  };
}

describe('summarise', () => {
  it('averages documents, alone and by kind, and takes ratios of sums', () => {
    const row = summarise({ label: 'x', ratio: 3 }, [resultOf('prose', 1, 2), resultOf('code', 3, 6)]);
    const close = (got: number | null | undefined, expected: number): void =>
      assert.ok(Math.abs((got ?? NaN) - expected) < 1e-12, `${got}, expected ${expected}`);
    close(row.klNats, 0.2);
    close(row.copyKlNats, 0.6);
    close(row.perplexityExact, 2);
    close(row.perplexityRestored, 4); // (3 + 5) / 2
    close(row.top1Agreement, 0.5);
    close(row.copyAccuracyRestored, 0.2);
    close(row.paperRatio, 3); // 240 bytes raw, 60 + 20 stored
    close(row.storedBytes, 40);
    close(row.byKind['code']?.klNats, 0.3);
    close(row.byDocument?.[0]?.klNats, 0.1);
    close(row.byDocument?.[1]?.klNats, 0.3);
    close(row.byKind['prose']?.perplexityRestored, 3);
    assert.deepEqual([row.documents, row.byKind['code']?.documents, row.treatment, row.ratio], [2, 1, 'x', 3]);
  });

  it('gives no ratio where nothing is stored', () => {
    const row = summarise({ label: 'floor', ratio: null }, [resultOf('prose', 1, null), resultOf('code', 3, null)]);
    assert.deepEqual([row.paperRatio, row.effectiveRatio, row.storedBytes, row.ratio], [null, null, null, null]);
  });
});
