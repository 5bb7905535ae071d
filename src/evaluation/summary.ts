// From results per document and treatment to the rows of a table. Does not know: engines, files, how rows are shown.

import type { MeanScores } from './metrics.ts';
import { meanScores } from './metrics.ts';
import type { CacheCosts, DocumentResult, TaskResult } from './run-file.ts';
import type { TaskFigures } from './tasks/figures.ts';
import { taskFigures } from './tasks/figures.ts';

/** What a treatment did to the model's output. KL is KL(exact ‖ restored), mean per token. */
export interface OutputFigures {
  readonly documents: number;
  readonly klNats: number;
  /** Share of positions whose most likely token is the exact run's. */
  readonly top1Agreement: number;
  /** Means over documents of e^(mean −log p of the next token). */
  readonly perplexityExact: number;
  readonly perplexityRestored: number;
  /** KL on a passage of the prefix that is repeated after it. */
  readonly copyKlNats: number;
  /** Share of copied tokens predicted first, from the exact and from the restored cache. */
  readonly copyAccuracyExact: number;
  readonly copyAccuracyRestored: number;
}

/** One treatment over all documents. */
export interface EvaluationRow extends OutputFigures {
  readonly treatment: string;
  /** Target ratio, where the treatment has one. */
  readonly ratio: number | null;
  /** Rows of one series differ in their target ratio alone; missing for rows that stand alone. */
  readonly series?: string | undefined;
  /** Of the sums over documents; null where nothing is stored. */
  readonly paperRatio: number | null;
  readonly effectiveRatio: number | null;
  /** Means over documents. */
  readonly storedBytes: number | null;
  readonly prefillMs: number;
  readonly compressMs: number;
  readonly restoreMs: number;
  readonly byKind: Readonly<Record<string, OutputFigures>>;
  /** In the order of the run's documents, to show how far they differ; outputs of earlier versions lack it. */
  readonly byDocument?: readonly Pick<OutputFigures, 'klNats' | 'copyKlNats' | 'top1Agreement'>[];
  /** By task; there when tasks were run. */
  readonly tasks?: Readonly<Record<string, TaskFigures>>;
}

/**
 * Sums a treatment's results up. All documents have prefixes of one length, so a ratio of sums is the harmonic mean of
 * the documents' ratios. Where only tasks were run, sizes and times are those of their items, and all figures of
 * documents are NaN. Documents and items must not both be missing.
 */
export function summarise(
  treatment: { readonly label: string; readonly ratio: number | null; readonly series?: string | undefined },
  results: readonly DocumentResult[],
  tasks: readonly TaskResult[] = [],
): EvaluationRow {
  const costs: readonly CacheCosts[] = results.length === 0 ? tasks : results;
  const kinds = [...new Set(results.map(({ kind }) => kind))];
  return {
    treatment: treatment.label,
    ratio: treatment.ratio,
    ...(treatment.series === undefined ? {} : { series: treatment.series }),
    paperRatio: harmonicMean(costs.map((result) => result.paperRatio)),
    effectiveRatio: harmonicMean(costs.map((result) => result.effectiveRatio)),
    ...outputFigures(results),
    storedBytes: costs.some(({ storedBytes }) => storedBytes === null)
      ? null
      : mean(costs.map(({ storedBytes }) => storedBytes ?? 0)),
    prefillMs: mean(costs.map(({ prefillMs }) => prefillMs)),
    compressMs: mean(costs.map(({ compressMs }) => compressMs)),
    restoreMs: mean(costs.map(({ restoreMs }) => restoreMs)),
    byKind: Object.fromEntries(
      kinds.map((kind) => [kind, outputFigures(results.filter((result) => result.kind === kind))]),
    ),
    byDocument: results.map((result) => {
      const { klNats, copyKlNats, top1Agreement } = outputFigures([result]);
      return { klNats, copyKlNats, top1Agreement };
    }),
    ...(tasks.length === 0 ? {} : { tasks: taskFigures(tasks) }),
  };
}

function outputFigures(results: readonly DocumentResult[]): OutputFigures {
  const average = (part: 'continuation' | 'continuationExact' | 'copy' | 'copyExact', what: keyof MeanScores): number =>
    mean(results.map((result) => meanScores(result[part])[what]));
  return {
    documents: results.length,
    klNats: average('continuation', 'klNats'),
    top1Agreement: average('continuation', 'top1Agreement'),
    perplexityExact: average('continuationExact', 'perplexity'),
    perplexityRestored: average('continuation', 'perplexity'),
    copyKlNats: average('copy', 'klNats'),
    copyAccuracyExact: average('copyExact', 'accuracy'),
    copyAccuracyRestored: average('copy', 'accuracy'),
  };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function harmonicMean(ratios: readonly (number | null)[]): number | null {
  const known = ratios.filter((ratio) => ratio !== null);
  return known.length < ratios.length ? null : 1 / mean(known.map((ratio) => 1 / ratio));
}
