// Documents to tune a profile on: cut from texts as evaluations do, or from what a calibration has left of its texts.
// Does not know: engines, profiles, what tuning is.

import { isKvtcError } from '../../base/errors.ts';
import type { TextGroup } from '../../calibration/sample.ts';
import { sampleDocuments } from '../../calibration/sample.ts';
import type { CutOptions, EvaluationDocument } from '../documents.ts';
import { cutDocuments } from '../documents.ts';

/** How a calibration sampled its texts. */
export interface SampledTexts {
  readonly tokens: number;
  readonly seed: number;
}

interface TuningCut extends CutOptions {
  readonly tokenize: (text: string) => Int32Array;
}

/** Cut in turn from the groups, as evaluations do. Throws KVTC_PROMPT_EMPTY, KVTC_OPTION_INVALID. */
export function newDocuments(groups: readonly TextGroup[], options: TuningCut): Promise<EvaluationDocument[]> {
  return cutDocuments(
    groups.flatMap(({ name, texts }) => texts.map((text) => ({ kind: name, ...text }))),
    options,
  );
}

/**
 * The last documents of a longer sample than the calibration's, which begins alike: as far as texts are long enough, no
 * token of them was calibrated on. Fewer, or none, where texts are short.
 */
export function leftDocuments(
  groups: readonly TextGroup[],
  calibrated: SampledTexts,
  { documents, documentTokens, tokenize }: TuningCut,
): EvaluationDocument[] {
  const perGroup = (Math.ceil(documents / Math.max(1, groups.length)) + 1) * documentTokens;
  const tokens = calibrated.tokens + perGroup * groups.length;
  try {
    return sampleDocuments(groups, { tokens, documentTokens, seed: calibrated.seed, tokenize })
      .filter((document) => document.tokens.length === documentTokens)
      .slice(-documents)
      .map(({ group, ...document }) => ({ kind: group, ...document }));
  } catch (error) {
    if (isKvtcError(error, 'KVTC_CALIBRATION_TEXT_SHORT')) return [];
    throw error;
  }
}
