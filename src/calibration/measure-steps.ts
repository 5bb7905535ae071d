// Steps against rates: codes held-out coefficients at every quarter octave of the step and keeps what it took.
// Does not know: where coefficients come from, engines, files.

import type { RunOptions } from '../base/events.ts';
import { throwIfAborted } from '../base/events.ts';
import type { StreamKind } from '../base/geometry.ts';
import { STREAMS } from '../base/geometry.ts';
import { SCALE_INDEX_LIMIT, SCALE_UNITS } from '../codec/wtc/classes.ts';
import type { StreamTables } from '../codec/wtc/plan.ts';
import { DEFAULT_CUT, USUAL_LOWEST_CLASS, createWtcPlan, rankNeeded } from '../codec/wtc/plan.ts';
import { encodeWtcChunk } from '../codec/wtc/wtc-codec.ts';
import type { StepPoint, TokenPredictor } from '../profile/profile.ts';
import { predictTokenClasses } from './token-steps.ts';
import type { TokenCoefficients } from './token-steps.ts';

/** Distance of measured steps, in step indices. */
const STRIDE = SCALE_UNITS / 4;

/** Rows coded together, as in a container. */
const CHUNK_ROWS = 256;

/** Ratios beyond these ends are not looked for. */
const LEAST_RATIO = 6;
const MOST_RATIO = 160;

/** A last component of this many octaves above the step takes some 10 bits: a basis too small for 6x has no finer use. */
const FINEST_OCTAVES = 8;

export interface MeasureStepsOptions extends Pick<RunOptions, 'signal'> {
  readonly tables: Readonly<Record<StreamKind, StreamTables>>;
  /** Values of a token. */
  readonly widths: Readonly<Record<StreamKind, number>>;
  /** Of held-out rows, as long as the scales: what is coded. */
  readonly coefficients: Readonly<Record<StreamKind, Float32Array>>;
  /** The same rows as the predictor sees them. */
  readonly predicting: TokenCoefficients;
  /** Step index of values less that of keys. */
  readonly valueOffset: number;
  readonly predictor: TokenPredictor | null;
  readonly exponent: number;
}

/** Points by rising ratio: from the last above 160x to the first below 6x, or where steps end. At least one. */
export function measureSteps(options: MeasureStepsOptions): StepPoint[] {
  const { tables, widths, valueOffset, exponent, predictor } = options;
  const { tokens } = options.predicting;
  const classes =
    predictor === null
      ? { key: new Int8Array(tokens), value: new Int8Array(tokens) }
      : predictTokenClasses(predictor, options.predicting, exponent);
  const lowestClass = predictor === null ? 0 : USUAL_LOWEST_CLASS;
  const points: StepPoint[] = [];
  let stepIndex = STRIDE * Math.ceil(Math.max(tables.key.scales[0]!, tables.value.scales[0]! - valueOffset) / STRIDE);
  const last = Math.min(tables.key.scales.at(-1)!, tables.value.scales.at(-1)! - valueOffset);
  const finest = Math.max(last - FINEST_OCTAVES * SCALE_UNITS, -SCALE_INDEX_LIMIT / 2);
  for (; stepIndex > finest || points.length === 0; stepIndex -= STRIDE) {
    throwIfAborted(options.signal);
    const at = (stream: StreamKind, index: number): StepPoint['key'] => ({
      stepIndex: index,
      rank: rankNeeded(tables[stream].scales, index, DEFAULT_CUT, lowestClass),
      cut: DEFAULT_CUT,
    });
    const point = { key: at('key', stepIndex), value: at('value', stepIndex + valueOffset) };
    const bits = STREAMS.reduce((sum, stream) => sum + codedBits(options, stream, point[stream], classes[stream]), 0);
    const ratio = (16 * (widths.key + widths.value) * tokens) / bits;
    // A finer step can take no fewer bits but for noise at the coarse end, where almost nothing is coded.
    while (points.length > 0 && (points[0] as StepPoint).ratio <= ratio) points.shift();
    points.unshift({ ratio, ...point, bitsPerToken: bits / tokens, exponent });
    if (ratio < LEAST_RATIO) break;
  }
  const first = points.findIndex(({ ratio }) => ratio > MOST_RATIO);
  return first < 0 ? points : points.slice(0, Math.max(1, first + 1));
}

function codedBits(
  { tables, coefficients, predicting }: MeasureStepsOptions,
  stream: StreamKind,
  parameters: StepPoint['key'],
  classes: Int8Array,
): number {
  const plan = createWtcPlan(parameters, tables[stream]);
  const { tokens } = predicting;
  const stride = tables[stream].scales.length;
  const rows = new Float32Array(CHUNK_ROWS * plan.rank);
  let bits = 0;
  for (let start = 0; start < tokens; start += CHUNK_ROWS) {
    const count = Math.min(CHUNK_ROWS, tokens - start);
    for (let t = 0; t < count; t++) {
      const from = (start + t) * stride;
      rows.set(coefficients[stream].subarray(from, from + plan.rank), t * plan.rank);
    }
    bits += 8 * encodeWtcChunk(rows, count, classes.subarray(start, start + count), plan).length;
  }
  return bits;
}
