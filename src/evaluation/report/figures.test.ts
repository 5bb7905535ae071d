// The report's arithmetic: break-even, label places, ticks, who beats whom.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { EvaluationRow } from '../summary.ts';
import { decades, octaves, shortNumber } from './chart.ts';
import type { RatioCloseUp } from '../close-up.ts';
import { breakEvenTokens, effectiveRatioAt, fitRestore, prefillMs, timesChart } from './cost-charts.ts';
import { placeLabels, textWidth } from './labels.ts';
import { comparison, conclusion, mainRow } from './comparison.ts';
import { wilsonInterval } from './rate-charts.ts';
import { nats, perplexity, seconds, times } from './words.ts';

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

  it('say so towards the middle, where there is room', () => {
    for (const [loadBasesMs, anchor, tokens] of [
      [400, 'start', 46],
      [1500, 'end', 133],
    ] as const) {
      const { svg } = timesChart({ ...times, loadBasesMs });
      assert.match(svg, new RegExp(`text-anchor="${anchor}"[^>]*><text [^>]*>break-even: ${tokens} tokens`, 'u'));
    }
  });
});

describe('sizes at other lengths', () => {
  it('keep what is exact and scale the rest, and agree with what was measured', () => {
    const parts = Object.entries({ keys: 300, values: 300, sinks: 40, window: 360, ids: 100 });
    const one = {
      rawBytes: 11_000,
      parts: parts.map(([name, byteLength]) => ({ name, byteLength })),
    } as unknown as RatioCloseUp;
    const document = { kind: '', source: '', tokens: 100 };
    assert.equal(effectiveRatioAt(one, document, 40, 100), 10);
    // 110 bytes of cache a token; 10 coded, 1 of index, 400 in all that stay.
    assert.equal(effectiveRatioAt(one, document, 40, 1000), 110_000 / (400 + 9600 + 1000));
  });
});

describe('placeLabels', () => {
  const frame = { left: 0, right: 200, top: 0, bottom: 100 };

  it('keeps labels in the frame and off each other, and leaves out what has no place', () => {
    const points = Array.from({ length: 12 }, (_, i) => ({
      x: 190 - (i % 3) * 4,
      y: 50 + i,
      label: `label ${i}`,
      colour: '',
      mayBeLed: false,
    }));
    const placed = placeLabels(points, frame, [], 11);
    assert.ok(placed.length > 1 && placed.length < points.length, `${placed.length}`);
    const boxes = placed.map(({ label, textX, textY, anchor }) => {
      const width = textWidth(label, 11);
      const left = anchor === 'start' ? textX : anchor === 'end' ? textX - width : textX - width / 2;
      return { left, right: left + width, top: textY - 6, bottom: textY + 6 };
    });
    for (const [i, a] of boxes.entries()) {
      assert.ok(a.left >= 0 && a.right <= 200 && a.top >= 0 && a.bottom <= 100);
      for (const b of boxes.slice(i + 1)) {
        assert.ok(a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top);
      }
    }
  });

  it('leads a line to a label further off, where that is allowed and the point itself is walled in', () => {
    const point = { x: 100, y: 50, label: 'far', colour: '', mayBeLed: true };
    // All around it but straight above on the right, where only the line passes.
    const wall = Array.from({ length: 12 }, (_, i) => (2 * Math.PI * i) / 12)
      .map((angle) => ({ x: 100 + 14 * Math.cos(angle), y: 50 + 14 * Math.sin(angle) }))
      .filter(({ x, y }) => !(x > 105 && x < 116 && y < 50));
    const [led] = placeLabels([point], frame, wall, 11);
    assert.ok(led?.led === true && Math.abs(led.textY - 50) > 20);
    assert.deepEqual(placeLabels([{ ...point, mayBeLed: false }], frame, wall, 11), []);
  });
});

describe('wilsonInterval', () => {
  it('is wide for few answers and never empty at the ends', () => {
    const round = (interval: readonly [number, number]): number[] => interval.map((end) => Number(end.toFixed(3)));
    assert.deepEqual(round(wilsonInterval(1, 10)), [0.722, 1]);
    assert.deepEqual(round(wilsonInterval(0.5, 10)), [0.237, 0.763]);
    assert.deepEqual(round(wilsonInterval(0, 1000)), [0, 0.004]);
  });
});

describe('ticks and numbers', () => {
  it('are few and round', () => {
    assert.deepEqual(decades([0.00003, 0.2]), [0.0001, 0.001, 0.01, 0.1]);
    assert.deepEqual(decades([0.02, 2]), [0.03, 0.1, 0.3, 1]);
    assert.deepEqual(octaves([1.5, 70]), [2, 4, 8, 16, 32, 64]);
    assert.deepEqual(octaves([2.2, 5.4]), [2.5, 3, 3.5, 4, 5]);
    assert.deepEqual(octaves([7, 20]), [8, 12, 16]);
    assert.deepEqual([0, 0.0123, 4.81, 480.2, 12345.6].map(shortNumber), ['0', '0.012', '4.8', '480', '12\u202f346']);
    assert.deepEqual([1e-5, 3e-6].map(shortNumber), ['10⁻⁵', '3·10⁻⁶']);
    assert.deepEqual([0, 0.0000173, 0.0123].map(nats), ['0.0000', '1.7·10⁻⁵', '0.0123']);
    assert.deepEqual([1.2345, 12.345, 123.45, null].map(times), ['1.23', '12.3', '123', '–']);
    assert.deepEqual([20.6012, 113_710.302].map(perplexity), ['20.601', '113710']);
    assert.deepEqual([0.23, 56.1, 447, 12_345].map(seconds), [
      '0.23\u00a0ms',
      '56\u00a0ms',
      '0.447\u00a0s',
      '12.3\u00a0s',
    ]);
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

  it('looks at one codec alone when asked to', () => {
    const both = [...rows, { ...row('wtc 16x', 30, 0.0001), series: 'wtc' }];
    assert.deepEqual(comparison(both, 'klNats', 'effectiveRatio', 'kvtc'), comparison(rows, 'klNats'));
    assert.deepEqual(comparison(both, 'klNats', 'effectiveRatio', 'wtc').beaten, ['worse', 'better', 'other']);
  });

  it('says how far codecs lie apart at one loss, and who is beaten', () => {
    const wtc = [row('wtc 8x', 14, 0.003), row('wtc 16x', 28, 0.03)].map((one) => ({ ...one, series: 'wtc' }));
    assert.equal(
      conclusion([...rows, ...wtc], 'klNats', 'effectiveRatio'),
      'At the loss of kvtc 8x, wtc is 2 times smaller still. Of 3 rivals, 1 is larger and further from exact than a point of a line. Smaller and closer than such a point: better.',
    );
    const far = wtc.map((one) => ({ ...one, klNats: 1 }));
    assert.match(
      conclusion([...rows, ...far], 'klNats', 'effectiveRatio'),
      /^wtc does not come as close to exact as kvtc 8x\./u,
    );
  });

  it('takes the plain row nearest 16x for the main one', () => {
    assert.equal(mainRow(rows)?.treatment, 'kvtc 8x');
    assert.equal(mainRow(rows.slice(3))?.treatment, 'worse');
  });
});
