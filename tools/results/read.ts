// Reads what docs/results.md is made of: JSON outputs of kvtc below bench/results/MODEL/, the oracle's numbers, and the
// explanations of deviations. Does not know: tables.

import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Ablation } from '../../src/evaluation/ablation/ablate.ts';
import type { BenchResult } from '../../src/evaluation/bench.ts';
import type { Evaluation } from '../../src/evaluation/evaluate.ts';

/** What the oracle measured of one row; absent where it did not. */
export interface OracleFigures {
  readonly paperRatio?: number;
  readonly effectiveRatio?: number;
  readonly klNats?: number;
  readonly copyKlNats?: number;
  readonly top1Agreement?: number;
}

interface OraclePlan {
  readonly error: number;
  readonly rank: number;
  readonly groups: number;
}

export interface Oracle {
  readonly title: string;
  /** By target ratio. */
  readonly rows: Readonly<Record<string, OracleFigures>>;
  /** KL in nats a token by target ratio and kind of text; of documents of all kinds alike, `rows` has the mean. */
  readonly kinds: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Captured at the shares of ENERGY_SHARES. */
  readonly energy: { readonly key: readonly number[]; readonly value: readonly number[] } | null;
  readonly plans: Readonly<Record<string, { readonly key: OraclePlan; readonly value: OraclePlan }>>;
  /** Bytes of a stream's 2 940 tokens at 16x, as packed and by DEFLATE in three orders; null where not measured. */
  readonly orders: { readonly key: readonly number[]; readonly value: readonly number[] } | null;
  /** Stored ratio of keys and values at 16x by tokens of a chunk. */
  readonly chunks: Readonly<Record<string, number>>;
  /** By `16x sinks 0`. */
  readonly ablations: Readonly<Record<string, OracleFigures>>;
  readonly rivals: Readonly<Record<string, OracleFigures>>;
}

/** One JSON file of bench/results. */
export interface NamedResult<T> {
  readonly file: string;
  readonly result: T;
}

export interface ModelResults {
  readonly id: string;
  readonly oracle: Oracle;
  readonly evaluations: readonly NamedResult<Evaluation>[];
  readonly ablations: readonly NamedResult<Ablation>[];
  readonly benches: readonly NamedResult<BenchResult>[];
}

export interface Evidence {
  readonly models: readonly ModelResults[];
  /** Why a figure differs from the oracle's, by `MODEL/table/row/column`. */
  readonly explanations: Readonly<Record<string, string>>;
}

/** Reads the folder `bench` of the repository. Throws where a file is no JSON or of no known kind. */
export async function readEvidence(bench: string): Promise<Evidence> {
  const oracles = (await readJson(join(bench, 'oracle.json'))) as Readonly<Record<string, Oracle>>;
  const explanations = (await readJson(join(bench, 'explanations.json'))) as Readonly<Record<string, string>>;
  const models: ModelResults[] = [];
  for (const [id, oracle] of Object.entries(oracles)) {
    const folder = join(bench, 'results', id);
    const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith('.json')).toSorted();
    const results: NamedResult<Record<string, unknown>>[] = [];
    for (const name of names) {
      const result = (await readJson(join(folder, name))) as Record<string, unknown>;
      const file = `bench/results/${id}/${name}`;
      if (!('rows' in result || 'speed' in result)) throw new Error(`${file} is neither an evaluation nor a benchmark`);
      results.push({ file, result });
    }
    const of = <T>(is: (result: Record<string, unknown>) => boolean): NamedResult<T>[] =>
      results.filter(({ result }) => is(result)) as unknown as NamedResult<T>[];
    models.push({
      id,
      oracle,
      evaluations: of<Evaluation>((result) => 'rows' in result && !('ablations' in result)),
      ablations: of<Ablation>((result) => 'ablations' in result),
      benches: of<{ speed: BenchResult }>((result) => 'speed' in result).map(({ file, result }) => ({
        file,
        result: result.speed,
      })),
    });
  }
  return { models, explanations };
}

async function readJson(path: string): Promise<unknown> {
  return JSON.parse(await readFile(path, 'utf8')) as unknown;
}
