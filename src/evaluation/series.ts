// Which rows of an evaluation belong together: a codec's settings over its ratios make a series, all else stands alone.
// Reads results of earlier versions too. Does not know: how rows are measured or shown.

import type { Evaluation } from './evaluate.ts';
import type { EvaluationRow } from './summary.ts';

/** Rows as they were named before they said their series. */
const EARLIER_SERIES = /^(kvtc|wtc) [\d.]+x( window exact)?$/u;

/** The row's series, null for rivals, ablations and other rows that stand alone. */
export function seriesOf(row: Pick<EvaluationRow, 'treatment' | 'series'>): string | null {
  if (row.series !== undefined) return row.series;
  const [, codec, window = ''] = EARLIER_SERIES.exec(row.treatment) ?? [];
  return codec === undefined ? null : codec + window;
}

/** All series in the order of their first rows. */
export function seriesNames(rows: readonly EvaluationRow[]): string[] {
  return [...new Set(rows.map(seriesOf).filter((name) => name !== null))];
}

/** The published codec's rows, which others are held against. */
export function isPaperSeries(name: string): boolean {
  return /^kvtc\b/u.test(name);
}

/** What was judged: rows of earlier versions are all of one profile of the published codec, or say so. */
export function evaluatedProfiles({
  settings,
}: Pick<Evaluation, 'settings'>): NonNullable<Evaluation['settings']['profiles']> {
  return (
    settings.profiles ?? [
      { name: 'kvtc', id: settings.profileId, codec: 'kvtc-paper', windowMode: 'exact', ratios: [] },
    ]
  );
}

/** `4 sinks exact (kvtc), first of 4 sinks exact (wtc), window of 128 exact (kvtc), coded finer (wtc)`. */
export function exactTokensText(evaluation: Pick<Evaluation, 'settings'>): string {
  const { sinks, window } = evaluation.settings;
  const profiles = evaluatedProfiles(evaluation);
  const texts = profiles.map(({ name, sinkMode = 'exact', windowMode }) => ({
    name,
    sinks: sinkMode === 'exact' || sinks < 2 ? `${sinks} sinks exact` : `first of ${sinks} sinks exact`,
    window: windowMode === 'exact' ? 'exact' : 'coded finer',
  }));
  const said = (of: 'sinks' | 'window'): string => {
    const distinct = [...new Set(texts.map((text) => text[of]))];
    return distinct.length === 1 ? distinct.join('') : texts.map((text) => `${text[of]} (${text.name})`).join(', ');
  };
  if (window > 0 && said('sinks') === `${sinks} sinks exact` && said('window') === 'exact') {
    return `${sinks} sinks and window of ${window} exact`;
  }
  return `${said('sinks')}, ${window === 0 ? 'no window' : `window of ${window} ${said('window')}`}`;
}
