// What calibration found: the spectrum of keys and values, how fast energy gathers, and what each ratio spends bits on.
// Does not know: quality, bytes, times.

import type { StreamKind } from '../../base/geometry.ts';
import { STREAMS } from '../../base/geometry.ts';
import type { GroupType, PlanGroup } from '../../codec/paper/plan.ts';
import type { RatioPlans } from '../../profile/profile.ts';
import type { RatioCloseUp, Spectrum } from '../close-up.ts';
import type { Figure } from './chart.ts';
import { INK, KEY_COLOUR, Plot, VALUE_COLOUR, decades, drawChart, shortNumber } from './chart.ts';

const STREAM_NAMES: Readonly<Record<StreamKind, string>> = { key: 'keys', value: 'values' };
const STREAM_COLOURS: Readonly<Record<StreamKind, string>> = { key: KEY_COLOUR, value: VALUE_COLOUR };
const STREAM_LEGEND = STREAMS.map((stream) => ({ colour: STREAM_COLOURS[stream], label: STREAM_NAMES[stream] }));
/** A group of one component is its 16-bit minimum, whatever its type: exact. */
type Precision = GroupType | 'alone';
const PRECISIONS = ['alone', 'fp8', 'int4', 'int2'] as const satisfies readonly Precision[];
const PRECISION_COLOURS: Readonly<Record<Precision, string>> = {
  alone: VALUE_COLOUR,
  fp8: 'var(--heat-6)',
  int4: 'var(--heat-4)',
  int2: 'var(--heat-2)',
};
const PRECISION_NAMES: Readonly<Record<Precision, string>> = {
  alone: 'a 16 bit number each',
  fp8: '8 bit (fp8)',
  int4: '4 bit',
  int2: '2 bit',
};

function precisionOf({ type, size }: PlanGroup): Precision {
  return size === 1 && type !== 'fp8' ? 'alone' : type;
}

export type Spectra = Readonly<Record<StreamKind, Spectrum>>;

/** A ratio of the published codec's profile. */
export type PlannedCloseUp = RatioCloseUp & { readonly plans: RatioPlans };

/** Variance by component as a share of all energy: dashed from calibration, solid on the document. */
export function spectrumChart(spectra: Spectra): Figure {
  const points = STREAMS.flatMap((stream) => {
    const { energyPerToken, points: found } = spectra[stream];
    return found.flatMap(({ component, variance, measured }) => [
      { stream, component, share: variance / energyPerToken, from: 'calibration' },
      { stream, component, share: measured / energyPerToken, from: 'document' },
    ]);
  }).filter(({ share }) => share > 0 && Number.isFinite(share));
  const shares = points.map(({ share }) => share);
  const domain = [Math.min(...shares) / 1.3, Math.max(...shares) * 1.5] as const;
  const last = Math.max(...points.map(({ component }) => component));
  const lines = (from: string, dash: string): unknown =>
    Plot.line(
      points.filter((point) => point.from === from),
      {
        x: 'component',
        y: 'share',
        z: 'stream',
        stroke: ({ stream }: (typeof points)[number]) => STREAM_COLOURS[stream],
        strokeWidth: from === 'document' ? 2 : 1.2,
        strokeDasharray: dash,
      },
    );
  const svg = drawChart('Share of energy by component, keys and values', {
    marginLeft: 56,
    x: {
      type: 'log',
      domain: [1, last * 1.05],
      ticks: decades([1, last]),
      tickFormat: shortNumber,
      label: 'component',
    },
    y: { type: 'log', domain, ticks: decades(domain), tickFormat: shortNumber, grid: true, label: 'share of energy' },
    marks: [lines('calibration', '3 3') as never, lines('document', 'none') as never],
  });
  return {
    id: 'spectrum',
    title: 'Energy by component',
    svg,
    caption:
      'Share of the energy in each component. Solid: measured on this document. Dashed: on the calibration texts.',
    legend: STREAM_LEGEND,
  };
}

/** Energy of the document captured by the first components. */
export function energyChart(spectra: Spectra): Figure {
  const points = STREAMS.flatMap((stream) =>
    spectra[stream].points.map(({ component, captured }) => ({
      stream,
      share: (100 * component) / spectra[stream].width,
      captured: 100 * captured,
    })),
  );
  const svg = drawChart('Energy captured by the first components, keys and values', {
    x: {
      domain: [0, Math.max(...points.map(({ share }) => share))],
      label: 'components kept, % of the width',
      ticks: 5,
    },
    y: { domain: [0, 100], grid: true, label: 'energy captured, %', ticks: 5 },
    marks: [
      Plot.line(points, {
        x: 'share',
        y: 'captured',
        z: 'stream',
        stroke: ({ stream }: (typeof points)[number]) => STREAM_COLOURS[stream],
        strokeWidth: 2,
      }),
    ],
  });
  return {
    id: 'energy',
    title: 'Energy captured',
    svg,
    caption:
      'Energy of this document that the first components hold. What is missing at the right end lies beyond the rank of the profile.',
    legend: STREAM_LEGEND,
  };
}

/** Components of one stream by the bits they get, one strip a ratio. */
export function planChart(stream: StreamKind, ratios: readonly PlannedCloseUp[], width: number): Figure {
  const strips = ratios.flatMap(({ ratio, plans }) =>
    runsOfType(plans[stream].groups).map((run) => ({ ...run, ratio: `${ratio}x` })),
  );
  const last = Math.max(1, ...ratios.map(({ plans }) => plans[stream].rank));
  const svg = drawChart(`Bits by component, ${STREAM_NAMES[stream]}`, {
    height: 50 + 30 * ratios.length,
    marginTop: 6,
    marginLeft: 40,
    x: { domain: [0, last], label: 'component', ticks: 5, tickFormat: shortNumber },
    y: { type: 'band', domain: ratios.map(({ ratio }) => `${ratio}x`), label: null, tickSize: 0, padding: 0.25 },
    marks: [
      Plot.barX(strips, {
        x1: 'start',
        x2: 'end',
        y: 'ratio',
        fill: ({ precision }: (typeof strips)[number]) => PRECISION_COLOURS[precision],
        title: ({ start, end, precision }: (typeof strips)[number]) =>
          `components ${start + 1} to ${end}: ${PRECISION_NAMES[precision]}`,
      }),
      Plot.ruleX([0], { stroke: INK, strokeOpacity: 0.3 }),
    ],
  });
  const used = PRECISIONS.filter((precision) => strips.some((strip) => strip.precision === precision));
  return {
    id: `plan-${stream}`,
    title: `Bits of the ${STREAM_NAMES[stream]}`,
    svg,
    caption: `Bits each component of the ${STREAM_NAMES[stream]} gets, by ratio and in falling order of variance. All ${shortNumber(width - last)} components further right get none.`,
    legend: used.map((precision) => ({ colour: PRECISION_COLOURS[precision], label: PRECISION_NAMES[precision] })),
  };
}

/** Neighbouring groups of one type as one strip: the first groups are too narrow to see each. */
function runsOfType(groups: readonly PlanGroup[]): { start: number; end: number; precision: Precision }[] {
  const runs: { start: number; end: number; precision: Precision }[] = [];
  for (const group of groups) {
    const { start, size } = group;
    const precision = precisionOf(group);
    const last = runs.at(-1);
    if (last?.precision === precision && last.end === start) last.end += size;
    else runs.push({ start, end: start + size, precision });
  }
  return runs;
}

/** Components of one plan by what they get. */
export function planCounts(closeUp: PlannedCloseUp, stream: StreamKind): Readonly<Record<Precision, number>> {
  const counts = { alone: 0, fp8: 0, int4: 0, int2: 0 };
  for (const group of closeUp.plans[stream].groups) counts[precisionOf(group)] += group.size;
  return counts;
}

/** Components needed for a share of the document's energy, or null when the profile's rank does not reach it. */
export function componentsFor(spectrum: Spectrum, share: number): number | null {
  return spectrum.points.find(({ captured }) => captured >= share)?.component ?? null;
}
