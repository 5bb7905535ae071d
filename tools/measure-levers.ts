// What further quantisers would bring to wtc, on real coefficients: rate at equal weighted error, held-out documents, half
// to train on and half to test. Numbers for docs/levers.md: node tools/measure-levers.ts MODEL.gguf PROFILE [TOKENS]

import { STREAMS } from '../src/base/geometry.ts';
import type { StreamKind } from '../src/base/geometry.ts';
import { tokenStep } from '../src/codec/wtc/classes.ts';
import { estimateBits } from '../src/codec/wtc/estimate.ts';
import type { WtcPlan } from '../src/codec/wtc/plan.ts';
import { DEFAULT_CUT, createWtcPlan } from '../src/codec/wtc/plan.ts';
import { createTokenSteps, reconstruct, symboliseToken } from '../src/codec/wtc/symbolise.ts';
import { trainTables } from '../src/codec/wtc/train.ts';
import { openProfile } from '../src/profile/open-profile.ts';
import type { WtcProfile } from '../src/profile/profile.ts';
import type { RateError, States, TokenSamples } from './levers/quantisers.ts';
import { CLASSES, REACH, quantise, rateAtError, trainQuantiser } from './levers/quantisers.ts';
import type { DocumentRows } from './levers/rows.ts';
import { documentRows } from './levers/rows.ts';

const TRAINING_STEPS = [-1024, -896, -768, -640, -512, -384, -256, -128, 0, 128, 256, 384];
const TESTED_STEPS = [-768, -512, -256, 0, 128];
/** Around each tested step, so that equal errors lie between measured points. */
const NEIGHBOURS = [-64, 0, 64];
const BIT_WEIGHTS = [0, 0.08, Math.LN2 / 6, 0.15, 0.2, 0.25];
const USUAL = Math.LN2 / 6;

const [modelPath = '', profilePath = '', tokens = '516'] = process.argv.slice(2);
const opened = await openProfile(profilePath);
if (opened.codec !== 'wtc') throw new Error(`${profilePath} is a profile of ${opened.codec}`);
const profile: WtcProfile = opened;
const documents = await documentRows(modelPath, profile, 4, Number(tokens));
const training = documents.filter((_, i) => i % 2 === 0);
const testing = documents.filter((_, i) => i % 2 === 1);
const steps = [...new Set(TESTED_STEPS.flatMap((step) => NEIGHBOURS.map((near) => step + near)))].toSorted(
  (a, b) => a - b,
);
for (const stream of STREAMS) {
  const scales = profile.tables[stream].scales;
  const rank = profile.rank[stream];
  const rows = {
    coefficients: Float32Array.from(training.flatMap((one) => [...one.coefficients[stream]])),
    tokenCount: training.reduce((sum, one) => sum + one.tokens, 0),
    rank,
  };
  const planOf = (family: WtcPlan['family'], stepIndex: number): WtcPlan =>
    createWtcPlan({ stepIndex, rank, cut: DEFAULT_CUT }, { scales, family });
  const usual = trainTables(rows, scales, TRAINING_STEPS);
  const codec = (family: WtcPlan['family']): RateError[] =>
    steps.map((step) => codedRows(testing, stream, planOf(family, step)));
  show(
    `${stream}s, product, thresholds by bit weight`,
    codec(usual),
    BIT_WEIGHTS.map((weight) => [weight.toFixed(3), codec(trainTables(rows, scales, TRAINING_STEPS, weight))] as const),
  );
  const samples = (from: readonly DocumentRows[], step: number): TokenSamples[] =>
    from.flatMap((one) => tokenSamples(one, stream, planOf(usual, step)));
  const trained = steps.filter((_, i) => i % 3 === 1).flatMap((step) => samples(training, step));
  const tested = steps.map((step) => samples(testing, step));
  const ideal = (states: States, weight: number): RateError[] => {
    const model = trainQuantiser(trained, states, weight);
    return tested.map((one) => quantise(one, model, weight));
  };
  show(
    `${stream}s, ideal code lengths`,
    ideal(1, USUAL),
    ([1, 4, 8] as const).flatMap((states) =>
      BIT_WEIGHTS.slice(1).map(
        (weight) =>
          [`${states === 1 ? 'uniform' : `trellis ${states}`} ${weight.toFixed(3)}`, ideal(states, weight)] as const,
      ),
    ),
  );
}
await profile.close();

/** A row per variant: percent of rate against the first curve, at its errors of the tested steps. */
function show(
  title: string,
  base: readonly RateError[],
  variants: readonly (readonly [string, readonly RateError[]])[],
): void {
  const shown = steps.flatMap((step, i) => (TESTED_STEPS.includes(step) ? [i] : []));
  const count = testing.reduce((sum, one) => sum + one.tokens, 0);
  console.log(
    `\n${title}\nbits a token: ${shown.map((i) => ((base[i] as RateError).bits / count).toFixed(0)).join(' ')}`,
  );
  for (const [name, curve] of variants) {
    const gains = shown.map((i) => {
      const { bits, error } = base[i] as RateError;
      return (100 * (rateAtError(curve, error) / bits - 1)).toFixed(2);
    });
    console.log(`${name}: ${gains.join(' ')} %`);
  }
}

/** The product's tables and choice. Errors weigh as much less as a token's step is coarser. */
function codedRows(from: readonly DocumentRows[], stream: StreamKind, plan: WtcPlan): RateError {
  let [bits, error] = [0, 0];
  const token = createTokenSteps(plan.rank);
  for (const one of from) {
    const coefficients = one.coefficients[stream];
    bits += estimateBits(coefficients, one.tokens, one.classes[stream], plan).codedBits;
    for (const [t, tokenClass] of one.classes[stream].entries()) {
      const step = tokenStep(plan.stepIndex, tokenClass);
      symboliseToken(coefficients, t * plan.rank, tokenClass, step, plan, token);
      for (let i = 0; i < plan.rank; i++) {
        const value =
          i < token.componentCount ? step * reconstruct(token.integers[i]!, plan.family.centroids, token.rows[i]!) : 0;
        error += 2 ** -tokenClass * (coefficients[t * plan.rank + i]! - value) ** 2;
      }
    }
  }
  return { bits, error };
}

/** Tokens as the quantisers take them, classes shifted as the product shifts them; very fine components set apart. */
function tokenSamples({ coefficients, classes }: DocumentRows, stream: StreamKind, plan: WtcPlan): TokenSamples[] {
  const rows = coefficients[stream];
  const token = createTokenSteps(plan.rank);
  return Array.from(classes[stream], (tokenClass, t) => {
    const step = tokenStep(plan.stepIndex, tokenClass);
    symboliseToken(rows, t * plan.rank, tokenClass, step, plan, token);
    const values: number[] = [];
    const kinds: number[] = [];
    let [otherBits, otherError] = [0, 0];
    for (let i = 0; i < plan.rank; i++) {
      const value = rows[t * plan.rank + i]! / step;
      if (i >= token.componentCount) {
        otherError += value ** 2;
      } else if (token.rows[i]! >= CLASSES - 1 || Math.abs(value) > REACH - 3) {
        const decay = Math.SQRT2 / 2 ** (Math.max(10, plan.componentClasses[i]! - 2 * tokenClass) / 4);
        otherBits += 1 - Math.log2(decay) + decay * Math.abs(value) * Math.LOG2E;
        otherError += (value - Math.round(value)) ** 2;
      } else {
        values.push(value);
        kinds.push(token.rows[i]!);
      }
    }
    const weight = step ** 2 * 2 ** -tokenClass;
    return { values: Float64Array.from(values), classes: Uint8Array.from(kinds), weight, otherBits, otherError };
  });
}
