// `kvtc verify --quality`: measures what a profile's ratios cost on texts of the user's and writes it into the profile,
// where compression is held to it. Does not know: how evaluation works, how compression chooses.

import { ratiosToMeasure, stepOfRatio } from '../cache/chunk-coder.ts';
import { openProfile } from '../profile/open-profile.ts';
import type { Profile, QualityPoint } from '../profile/profile.ts';
import { rewriteProfile } from '../profile/write-profile.ts';
import type { EvaluateOptions, Evaluation } from './evaluate.ts';
import { evaluate } from './evaluate.ts';

/** Settings that quality points do not record keep their defaults: sinks, window, no rivals. */
export type MeasureQualityOptions = Omit<
  EvaluateOptions,
  'alsoProfilePaths' | 'windowMode' | 'sinkMode' | 'sinks' | 'window' | 'rivals' | 'treatments' | 'tasks' | 'closeUp'
>;

export interface MeasuredQuality {
  readonly points: readonly QualityPoint[];
  readonly evaluation: Evaluation;
}

/**
 * Evaluates the profile's ratios (default: ratiosToMeasure) on `texts` and adds a point for each to the profile file, in
 * the place of points of the same ratio, text and weights. The profile keeps its id. Throws as `evaluate` and
 * `rewriteProfile`.
 */
export async function measureQuality(options: MeasureQualityOptions): Promise<MeasuredQuality> {
  const profile = await openProfile(options.profilePath);
  await profile.close(); // what it is known by stays
  const evaluation = await evaluate({ ...options, ratios: options.ratios ?? ratiosToMeasure(profile) });
  const points = qualityPoints(evaluation, profile);
  const kept = profile.quality.filter((old) => !points.some((point) => isSameMeasurement(old, point)));
  const quality = [...kept, ...points].toSorted((a, b) => a.ratio - b.ratio);
  await rewriteProfile(options.profilePath, { quality });
  return { points, evaluation };
}

function qualityPoints({ rows, settings }: Evaluation, profile: Profile): QualityPoint[] {
  const kinds = [...new Set(settings.documents.map(({ kind }) => kind))];
  const count = settings.documents.length;
  const text = `${count} ${count === 1 ? 'document' : 'documents'} of ${kinds.join(', ')}`.slice(0, 4096);
  return rows.flatMap(({ ratio, paperRatio, effectiveRatio, klNats, copyKlNats, top1Agreement, documents }) => {
    if (ratio === null || paperRatio === null || effectiveRatio === null) return [];
    const step = stepOfRatio(profile, ratio);
    const point: QualityPoint = {
      ratio,
      ...(step === null ? {} : { step }),
      paperRatio,
      effectiveRatio,
      klNats,
      copyKlNats,
      top1Agreement,
      weights: settings.weights === 'as-is' ? 'as-is' : 'exact',
      text,
      tokens: documents * settings.continuationTokens,
    };
    return [point];
  });
}

function isSameMeasurement(a: QualityPoint, b: QualityPoint): boolean {
  return a.ratio === b.ratio && a.text === b.text && a.weights === b.weights;
}
