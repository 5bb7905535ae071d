// The sections of the close-up: for each, a title that states what the data show, a sentence on how to read it, the
// charts, and a table with every number. Does not know: how charts are drawn, the page around the sections.

import { BYTE_ORDERS } from '../byte-orders.ts';
import { STREAMS } from '../../base/geometry.ts';
import type { CloseUp } from '../close-up.ts';
import { wholeNumber } from './chart.ts';
import { breakEvenTokens, bytesChart, bytesOf, lengthChart, timesChart } from './cost-charts.ts';
import { headChart, positionChart, worstHead } from './error-charts.ts';
import { besideHtml, chartsHtml, detailsHtml, sectionHtml, tableHtml } from './html.ts';
import type { PlannedCloseUp } from './profile-charts.ts';
import { componentsFor, energyChart, planChart, planCounts, spectrumChart } from './profile-charts.ts';
import { percent, seconds, times } from './words.ts';

const STREAM_NAMES = { key: 'keys', value: 'values' } as const;

/** The ratio most charts show: nearest the paper's 16x. */
function mainRatio<T extends { readonly ratio: number }>(ratios: readonly T[]): T | undefined {
  const distance = ({ ratio }: T): number => Math.abs(Math.log2(ratio / 16));
  return ratios.toSorted((a, b) => distance(a) - distance(b))[0];
}

export function spectrumSection({ spectrum }: CloseUp): string {
  if (spectrum === null) return '';
  const parts = STREAMS.map((stream) => {
    const needed = componentsFor(spectrum[stream], 0.9);
    const held = spectrum[stream].points.at(-1)?.captured ?? 0;
    return needed === null
      ? `the profile's rank holds ${percent(held, 0)} of the ${STREAM_NAMES[stream]}`
      : `${wholeNumber(needed)} of ${wholeNumber(spectrum[stream].width)} components hold 90\u00a0% of the ${STREAM_NAMES[stream]}`;
  });
  const title = `Energy gathers in few directions: ${parts.join(', ')}`;
  const text =
    'Keys (before rotation) and values of all layers and heads of one token, centred and turned onto the basis of the profile. The steeper the fall, the more there is to save. Energy is counted on a document that calibration has not seen.';
  const lines = spectrum.key.points.map(({ component }, i) => {
    const cells = STREAMS.flatMap((stream) => {
      const point = spectrum[stream].points[i];
      const share = (value: number): string => (value / spectrum[stream].energyPerToken).toExponential(2);
      return point === undefined
        ? ['', '', '']
        : [share(point.variance), share(point.measured), percent(point.captured)];
    });
    return [`${component}`, ...cells];
  });
  const heading = [
    'component',
    ...STREAMS.flatMap((stream) => [`${STREAM_NAMES[stream]}, calibrated`, 'measured', 'captured']),
  ];
  const table = spectrum.key.points.length === spectrum.value.points.length ? tableHtml(heading, lines) : '';
  return sectionHtml(
    'spectrum',
    title,
    text,
    chartsHtml([spectrumChart(spectrum), energyChart(spectrum)]) + detailsHtml('Every number', table),
  );
}

export function planSection({ ratios, spectrum }: CloseUp): string {
  const planned = ratios.filter((one): one is PlannedCloseUp => one.plans !== null);
  const main = mainRatio(planned);
  if (main === undefined || spectrum === null) return '';
  const counts = planCounts(main, 'key');
  const { width } = spectrum.key;
  const kept = counts.alone + counts.fp8 + counts.int4 + counts.int2;
  const title = `At ${main.ratio}x, ${wholeNumber(counts.alone + counts.fp8)} key components get 8 bits or more, ${wholeNumber(counts.int4)} get 4, ${wholeNumber(counts.int2)} get 2 and ${wholeNumber(width - kept)} none`;
  const text = 'The plan spreads a budget of bits over the components so that the expected squared error is least.';
  const charts = STREAMS.map((stream) => planChart(stream, planned, spectrum[stream].width));
  const lines = planned.flatMap((one) =>
    STREAMS.map((stream) => {
      const types = planCounts(one, stream);
      const { rank, groups } = one.plans[stream];
      const predicted = stream === 'key' ? one.plans.keyError : one.plans.valueError;
      const measured = one.errors[stream].total;
      return [
        `${one.ratio}x ${STREAM_NAMES[stream]}`,
        wholeNumber(rank),
        `${groups.length}`,
        wholeNumber(types.alone),
        wholeNumber(types.fp8),
        wholeNumber(types.int4),
        wholeNumber(types.int2),
        percent(predicted),
        percent(measured),
      ];
    }),
  );
  const heading = [
    '',
    'rank',
    'groups',
    '16 bit alone',
    '8 bit',
    '4 bit',
    '2 bit',
    'error, planned',
    'error, this document',
  ];
  return sectionHtml('plan', title, text, chartsHtml(charts) + tableHtml(heading, lines));
}

export function errorSection(closeUp: CloseUp): string {
  const main = mainRatio(closeUp.ratios);
  if (main === undefined) return '';
  const worst = STREAMS.map((stream) => ({ stream, ...worstHead(main, stream) })).toSorted(
    (a, b) => b.error - a.error,
  )[0];
  const title =
    worst === undefined
      ? ''
      : `The ${STREAM_NAMES[worst.stream]} of layer ${worst.layer}, head ${worst.head} lose most at ${main.ratio}x: ${worst.error.toPrecision(2)} %, against ${percent(main.errors[worst.stream].total, 1)} in all`;
  const text =
    'Squared distance between restored and exact rows, over the squared distance of the exact rows from their mean. One basis serves all layers and heads, so those with little energy are the first to lose.';
  const others = closeUp.ratios.filter((one) => one !== main);
  const more =
    others.length === 0
      ? ''
      : detailsHtml(
          'Layers and heads at the other ratios',
          chartsHtml(others.flatMap((one) => STREAMS.map((stream) => headChart(one, stream)))),
        );
  const positions = closeUp.ratios.flatMap((one) =>
    STREAMS.flatMap((stream) =>
      one.errors[stream].byPosition.map(({ startToken, endToken, error }) => [
        `${one.ratio}x ${STREAM_NAMES[stream]}`,
        `${startToken} to ${endToken - 1}`,
        percent(error, 3),
      ]),
    ),
  );
  const heads = closeUp.ratios.flatMap((one) =>
    STREAMS.flatMap((stream) =>
      one.errors[stream].byHead.flatMap((row, layer) =>
        row.map((error, head) => [`${one.ratio}x ${STREAM_NAMES[stream]}`, `${layer}`, `${head}`, percent(error, 3)]),
      ),
    ),
  );
  return sectionHtml(
    'errors',
    title,
    text,
    chartsHtml([
      ...STREAMS.map((stream) => headChart(main, stream)),
      ...STREAMS.map((stream) => positionChart(closeUp.ratios, stream)),
    ]) +
      more +
      detailsHtml('Every number, by layer and head', tableHtml(['', 'layer', 'head', 'error'], heads)) +
      detailsHtml('Every number, by position', tableHtml(['', 'tokens', 'error'], positions)),
  );
}

export function costSection(closeUp: CloseUp): string {
  const { ratios, times: measured } = closeUp;
  const smallest = ratios.at(-1);
  const exact = (smallest?.parts ?? [])
    .filter(({ name }) => name === 'window' || name === 'sinks')
    .reduce((sum, { byteLength }) => sum + byteLength, 0);
  const bytesTitle =
    smallest === undefined
      ? ''
      : `At ${smallest.ratio}x, ${percent(exact / bytesOf(smallest), 0)} of the file are the tokens kept exact`;
  const bytesText =
    'The window of newest tokens is kept as the engine holds it. It weighs less the longer the context: ratios with every byte counted grow with length.';
  const names = smallest?.parts.map(({ name }) => name) ?? [];
  const bytesTable = tableHtml(
    ['', ...names, 'file', 'cache', 'paper ratio', 'every byte'],
    ratios.map((one) => [
      `${one.ratio}x`,
      ...one.parts.map(({ byteLength }) => wholeNumber(byteLength)),
      wholeNumber(bytesOf(one)),
      wholeNumber(one.rawBytes),
      times(one.paperRatio),
      times(one.effectiveRatio),
    ]),
  );
  const even = breakEvenTokens(measured);
  const last = measured.restore.at(-1);
  const prefill = measured.prefill.at(-1);
  const factor = last === undefined || prefill === undefined ? 0 : prefill.elapsedMs / last.elapsedMs;
  const timesTitle =
    `Restoring ${wholeNumber(last?.tokens ?? 0)} tokens takes ${seconds(last?.elapsedMs ?? 0)}, prefilling them ${seconds(prefill?.elapsedMs ?? 0)}: ${factor.toPrecision(2)} times as long` +
    evenText(even, measured.exactTokens);
  const timesText = `Restoring from memory at ${measured.ratio}x, medians of three; the ${measured.exactTokens} exact tokens are only copied; loading the bases takes ${seconds(measured.loadBasesMs)}, once in a process. Prefill as the engine does it, 512 tokens at a time.`;
  const timesTable = tableHtml(
    ['', 'tokens', 'time'],
    [
      ...measured.prefill.map((point) => ['prefill', wholeNumber(point.tokens), seconds(point.elapsedMs)]),
      ...measured.restore.map((point) => ['restore', wholeNumber(point.tokens), seconds(point.elapsedMs)]),
    ],
  );
  return (
    sectionHtml(
      'bytes',
      bytesTitle,
      bytesText,
      chartsHtml([bytesChart(closeUp), lengthChart(closeUp)]) + bytesTable + ordersHtml(closeUp),
    ) + sectionHtml('times', timesTitle, timesText, besideHtml(timesChart(measured), timesTable))
  );
}

/** What the order of bytes before DEFLATE is worth; nothing for profiles of another codec. */
function ordersHtml({ byteOrders }: CloseUp): string {
  if (byteOrders === null || byteOrders === undefined) return '';
  const rows = STREAMS.map((stream) => {
    return [`${byteOrders.ratio}x ${stream}s`, ...BYTE_ORDERS.map((order) => wholeNumber(byteOrders[stream][order]))];
  });
  const heading = ['', 'packed', 'token by token', 'group by group', 'split planes'];
  return detailsHtml(
    `Bytes of ${wholeNumber(byteOrders.key.tokens)} tokens in one chunk, by their order before DEFLATE`,
    tableHtml(heading, rows),
  );
}

function evenText(even: number | null, exactTokens: number): string {
  if (even === null) return '. A fresh process, which loads the bases first, gains nothing at these lengths';
  return even <= exactTokens + 1
    ? '. Even a fresh process, which loads the bases first, gains at every length'
    : `. A fresh process, which loads the bases first, gains from ${wholeNumber(even)} tokens on`;
}
