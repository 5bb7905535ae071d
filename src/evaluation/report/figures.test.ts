// The report's arithmetic: break-even, label places, ticks, who beats whom.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { EvaluationRow } from '../summary.ts';
import { decades, octaves, shortNumber } from './chart.ts';
import { breakEvenTokens, fitRestore, prefillMs } from './cost-charts.ts';
import { placeLabels } from './labels.ts';
import { comparison, mainRow } from './rate-charts.ts';

describe('restore times', () => {
  const prefill = [
    { tokens: 100, elapsedMs: 1000 },
    { tokens: 200, elapsedMs: 3000 },
  ];
  const restore = [
    { tokens: 60, elapsedMs: 70 },
    { tokens: 110, elapsedMs: 120 },
  ];
  const times = { ratio: 16, exactTokens: 10, prefill, restore, loadBasesMs: 0 };

  it('are fitted by coded tokens, and prefill read between its points', () => {
    const { restoreMs } = fitRestore(times);
    assert.deepEqual(
      [10, 60, 210].map((tokens) => Math.round(restoreMs(tokens))),
      [20, 70, 220],
    );
    assert.deepEqual(
      [0, 50, 100, 150, 200].map((tokens) => prefillMs(prefill, tokens)),
      [0, 500, 1000, 2000, 3000],
    );
    assert.equal(fitRestore({ ...times, restore: restore.slice(0, 1) }).restoreMs(110), 140);
  });

  it('break even where prefill overtakes loading and restoring', () => {
    assert.equal(breakEvenTokens(times), 11);
    // 10 ms a token against 400 + 20 + 1 ms for each after the tenth.
    assert.equal(breakEvenTokens({ ...times, loadBasesMs: 400 }), 46);
    assert.equal(breakEvenTokens({ ...times, loadBasesMs: 4000 }), null);
  });
});

describe('placeLabels', () => {
  const frame = { left: 0, right: 200, top: 0, bottom: 100 };

  it('keeps labels in the frame and off each other, and leaves out what has no place', () => {
    const points = Array.from({ length: 12 }, (_, i) => ({ x: 190 - (i % 3) * 4, y: 50 + i, label: `label ${i}` }));
    const placed = placeLabels(points, frame, [], 11);
    assert.ok(placed.length > 1 && placed.length < points.length, `${placed.length}`);
    const boxes = placed.map(({ label, textX, textY, anchor }) => {
      const width = label.length * 11 * 0.54;
      const left = anchor === 'start' ? textX : anchor === 'end' ? textX - width : textX - width / 2;
      return { left, right: left + width, top: textY - 6.6, bottom: textY + 6.6 };
    });
    for (const [i, a] of boxes.entries()) {
      assert.ok(a.left >= 0 && a.right <= 200 && a.top >= 0 && a.bottom <= 100);
      for (const b of boxes.slice(i + 1)) {
        assert.ok(a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top);
      }
    }
  });
});

describe('ticks and numbers', () => {
  it('are few and round', () => {
    assert.deepEqual(decades([0.00003, 0.2]), [0.0001, 0.001, 0.01, 0.1]);
    assert.deepEqual(decades([0.02, 2]), [0.03, 0.1, 0.3, 1]);
    assert.deepEqual(octaves([1.5, 70]), [2, 4, 8, 16, 32, 64]);
    assert.deepEqual([0, 0.0123, 4.81, 480.2, 12345.6].map(shortNumber), ['0', '0.012', '4.8', '480', '12\u202f346']);
  });
});

describe('comparison', () => {
  const row = (treatment: string, effectiveRatio: number | null, klNats: number): EvaluationRow =>
    ({
      treatment,
      ratio: Number(/kvtc (\d+)x$/u.exec(treatment)?.[1] ?? 0),
      effectiveRatio,
      klNats,
      copyKlNats: 1,
    }) as EvaluationRow;
  const rows = [
    row('kvtc 8x', 7, 0.003),
    row('kvtc 32x', 15, 0.03),
    row('kvtc 16x sinks 0', 11, 0.5),
    row('worse', 5, 0.01),
    row('better', 20, 0.02),
    row('other', 2, 0.0001),
    row('unstored', null, 0),
  ];

  it('tells who is beaten, who beats, and who is neither', () => {
    const { beaten, beating, apart } = comparison(rows, 'klNats');
    assert.deepEqual([beaten, beating, apart], [['worse'], ['better'], ['other']]);
  });

  it('takes the plain row nearest 16x for the main one', () => {
    assert.equal(mainRow(rows)?.treatment, 'kvtc 8x');
    assert.equal(mainRow(rows.slice(3))?.treatment, 'worse');
  });
});
