// `kvtc verify --quality`: measures what a profile's ratios cost on texts of the user's and writes it into the profile,
// where compression is held to it. Does not know: how evaluation works, how compression chooses.

import { openProfile } from '../profile/open-profile.ts';
import type { QualityPoint } from '../profile/profile.ts';
import { rewriteProfile } from '../profile/write-profile.ts';
import type { EvaluateOptions, Evaluation } from './evaluate.ts';
import { evaluate } from './evaluate.ts';

/** Settings that quality points do not record keep their defaults: sinks, window, no rivals. */
export type MeasureQualityOptions = Omit<
  EvaluateOptions,
  'sinks' | 'window' | 'rivals' | 'treatments' | 'tasks' | 'closeUp'
>;

export interface MeasuredQuality {
  readonly points: readonly QualityPoint[];
  readonly evaluation: Evaluation;
}

/**
 * Evaluates the profile's ratios on `texts` and adds a point for each to the profile file, in the place of points of the
 * same ratio, text and weights. The profile keeps its id. Throws as `evaluate` and `rewriteProfile`.
 */
export async function measureQuality(options: MeasureQualityOptions): Promise<MeasuredQuality> {
  const evaluation = await evaluate(options);
  const points = qualityPoints(evaluation);
  const profile = await openProfile(options.profilePath);
  const kept = profile.quality.filter((old) => !points.some((point) => isSameMeasurement(old, point)));
  await profile.close();
  const quality = [...kept, ...points].toSorted((a, b) => a.ratio - b.ratio);
  await rewriteProfile(options.profilePath, { quality });
  return { points, evaluation };
}

function qualityPoints({ rows, settings }: Evaluation): QualityPoint[] {
  const kinds = [...new Set(settings.documents.map(({ kind }) => kind))];
  const count = settings.documents.length;
  const text = `${count} ${count === 1 ? 'document' : 'documents'} of ${kinds.join(', ')}`.slice(0, 4096);
  return rows.flatMap(({ ratio, paperRatio, effectiveRatio, klNats, copyKlNats, top1Agreement, documents }) =>
    ratio === null || paperRatio === null || effectiveRatio === null
      ? []
      : [
          {
            ratio,
            paperRatio,
            effectiveRatio,
            klNats,
            copyKlNats,
            top1Agreement,
            weights: settings.weights === 'as-is' ? ('as-is' as const) : ('exact' as const),
            text,
            tokens: documents * settings.continuationTokens,
          },
        ],
  );
}

function isSameMeasurement(a: QualityPoint, b: QualityPoint): boolean {
  return a.ratio === b.ratio && a.text === b.text && a.weights === b.weights;
}
