// The head of the page: what was found in a sentence or two, and the few figures that matter most, large.
// Does not know: charts, tables.

import { equalQuality, equalRatioText } from '../equal-quality.ts';
import type { Evaluation } from '../evaluate.ts';
import { seriesNames, seriesOf } from '../series.ts';
import { wholeNumber } from './chart.ts';
import { mainRow } from './comparison.ts';
import { escapeHtml } from './html.ts';
import { nats, times } from './words.ts';

/** A sentence on the whole; empty where no documents were judged. */
export function leadText({ rows, floor }: Evaluation): string {
  const ranges = seriesNames(rows).flatMap((name) => {
    const own = rows.filter(
      (row) => seriesOf(row) === name && row.effectiveRatio !== null && Number.isFinite(row.klNats),
    );
    const [best, smallest] = [own.at(0), own.at(-1)];
    if (best === undefined || smallest === undefined) return [];
    const range = (from: string, to: string): string => (from === to ? from : `${from} to ${to}`);
    const sizes = range(times(best.effectiveRatio), times(smallest.effectiveRatio));
    return [
      `${name} makes the cache ${sizes} times smaller for ${range(nats(best.klNats), nats(smallest.klNats))} nats a token`,
    ];
  });
  if (ranges.length === 0) return '';
  const noise =
    floor.klNats > 0
      ? ` The engine's own rounding costs ${nats(floor.klNats)} nats; less than that is no difference.`
      : '';
  return `With every byte counted, ${ranges.join('; ')}.${noise}`;
}

/** The figures that matter most: each codec near the paper's 16x, one at the losses of the other, time to restore. */
export function tilesHtml({ rows, closeUp }: Evaluation): string {
  const main = mainRow(rows);
  const own = seriesNames(rows).flatMap((name) => {
    const row = mainRow(rows.filter((one) => seriesOf(one) === name));
    return row === undefined || row.effectiveRatio === null || !Number.isFinite(row.klNats)
      ? []
      : [
          {
            figure: `${times(row.effectiveRatio)}\u00d7`,
            text: `smaller with ${row.treatment}, every byte counted (${times(row.paperRatio)}\u00d7 by the paper's count), for ${nats(row.klNats)} nats a token`,
          },
        ];
  });
  const equal = (Number.isFinite(main?.klNats) ? equalQuality(rows) : [])
    .filter(({ against, effectiveRatio }) => against === main && effectiveRatio.relation !== 'below')
    .map(({ series, against, effectiveRatio }) => ({
      figure: `${equalRatioText(effectiveRatio)}\u00d7`,
      text: `smaller with ${series} at losses no worse than ${against.treatment}'s, every byte counted`,
    }));
  const restored = closeUp?.times.restore.at(-1);
  const prefilled = closeUp?.times.prefill.at(-1);
  const restore =
    restored === undefined || prefilled === undefined
      ? []
      : [
          {
            figure: `${(prefilled.elapsedMs / restored.elapsedMs).toPrecision(2)}\u00d7`,
            text: `faster to restore ${wholeNumber(restored.tokens)} tokens at ${closeUp?.times.ratio}x than to prefill them`,
          },
        ];
  const tiles = [...own, ...equal, ...restore].map(
    ({ figure, text }) => `<li><b>${escapeHtml(figure)}</b>${escapeHtml(text)}</li>`,
  );
  return tiles.length === 0 ? '' : `<ul class="tiles">${tiles.join('')}</ul>`;
}
