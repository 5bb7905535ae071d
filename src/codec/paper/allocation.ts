// Bit allocation: the dynamic programme that turns error tables into plans (paper §3.2, eq. 6; reading R8).
// One table answers every budget up to its largest, and the dual question: the smallest size under an error bound.
// Does not know: how errors were measured, streams, models.

import { KvtcError, invariant } from '../../base/errors.ts';
import type { ErrorTables, SizeTable } from './error-tables.ts';
import type { GroupType, PaperPlan, PlanGroup } from './plan.ts';
import { CODE_BITS, METADATA_BITS, RANK_STEP } from './plan.ts';

/** All costs are even, so budgets count in steps of two bits. */
const UNIT_BITS = 2;

export interface AllocationOptions {
  /** Prices fp8 groups like integer ones, with 32 bits of metadata per token (§3.2 to the letter). Off by default (R3). */
  readonly fp8Metadata?: boolean | undefined;
}

/** The filled table of the dynamic programme. */
export interface Allocation {
  readonly tables: ErrorTables;
  /** Largest budget it can answer, in bits per token. */
  readonly maxBudgetBits: number;
  readonly moves: readonly Move[];
  /** Component index of each boundary a plan may have. */
  readonly boundaries: Int32Array;
  /** gain[u]: largest error reduction within u units, f64[units + 1], never falling. */
  readonly gain: Float64Array;
  /** For each boundary and budget: 0 = no group ends here, m + 1 = group of moves[m] ends here. */
  readonly choices: readonly Uint8Array[];
}

/** A kind of group: its size table, type and price. */
interface Move {
  readonly table: SizeTable;
  readonly type: GroupType;
  readonly units: number;
}

export interface PlannedBits {
  readonly plan: PaperPlan;
  /** Bits per token of all groups, metadata counted. */
  readonly usedBits: number;
  /** Predicted squared error per row, and the same relative to the rows' squared norm; energy outside the basis counts. */
  readonly squaredError: number;
  readonly relativeError: number;
}

/** Bits per token and stream of a target ratio, metadata included: floor(16 · p / ratio) (R8). */
export function ratioBudgetBits(streamWidth: number, ratio: number): number {
  if (!(ratio >= 1 && Number.isFinite(ratio))) {
    throw new KvtcError('KVTC_OPTION_INVALID', `ratio ${ratio}: expected a number from 1`, { ratio });
  }
  return Math.floor((16 * streamWidth) / ratio);
}

/**
 * Fills the table for all budgets up to `maxBudgetBits` per token. best(i, b) = largest reduction of squared error by
 * groups within components 0..i−1 of at most b bits. Time and memory: boundaries × budget / 2 (× about 13 for time),
 * one byte each.
 */
export function allocateBits(tables: ErrorTables, maxBudgetBits: number, options: AllocationOptions = {}): Allocation {
  invariant(maxBudgetBits >= 0, `budget of ${maxBudgetBits} bits`);
  const moves = priceMoves(tables, options.fp8Metadata ?? false);
  invariant(moves.length < 256, 'more kinds of groups than a byte counts');
  const units = Math.min(Math.floor(maxBudgetBits / UNIT_BITS), mostUnits(tables));
  const boundaries = planBoundaries(tables);
  const indexOf = new Map([...boundaries].map((component, index) => [component, index]));
  const largestSize = tables.sizes.at(-1)?.size ?? 0;
  const prefix = new Float64Array(tables.rank + 1);
  for (let c = 0; c < tables.rank; c++) prefix[c + 1] = prefix[c]! + tables.energy[c]!;

  const best: (Float64Array | undefined)[] = [new Float64Array(units + 1)];
  const choices: Uint8Array[] = [new Uint8Array(0)];
  let oldest = 0;
  for (let index = 1; index < boundaries.length; index++) {
    const end = boundaries[index]!;
    // Rows further back than the largest group are never looked at again; the freed one becomes the new row.
    let row: Float64Array | undefined;
    for (; boundaries[oldest]! < end - largestSize && oldest < index - 1; oldest++) {
      row = best[oldest];
      best[oldest] = undefined;
    }
    row ??= new Float64Array(units + 1);
    row.set(best[index - 1]!);
    const choice = new Uint8Array(units + 1);
    for (const [code, { table, type, units: cost }] of moves.entries()) {
      const start = end - table.size;
      const at = table.size === 1 ? start : start / RANK_STEP;
      if (start < 0 || cost > units || table.starts[at] !== start) continue;
      const gain = prefix[end]! - prefix[start]! - table.errors[type][at]!;
      if (gain > 0) relax(best[indexOf.get(start)!]!, row, choice, cost, gain, code + 1);
    }
    best[index] = row;
    choices.push(choice);
  }
  const gain = best[boundaries.length - 1];
  invariant(gain !== undefined, 'no boundary');
  return { tables, maxBudgetBits, moves, boundaries, gain, choices };
}

/**
 * The plan of least predicted error within a budget of bits per token. Ties: fewer bits; within the table, at each
 * boundary, no group before a group, then the cheaper, then the smaller one.
 * Throws KVTC_OPTION_INVALID when the budget is beyond the table's.
 */
export function planBits(allocation: Allocation, budgetBits: number): PlannedBits {
  if (!(budgetBits >= 0 && budgetBits <= allocation.maxBudgetBits)) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `budget of ${budgetBits} bits; the table was filled for 0 to ${allocation.maxBudgetBits}`,
      { budgetBits, maxBudgetBits: allocation.maxBudgetBits },
    );
  }
  const { gain } = allocation;
  const units = Math.min(Math.floor(budgetBits / UNIT_BITS), gain.length - 1);
  return tracePlan(allocation, firstReaching(gain, gain[units]!));
}

/**
 * The dual: the plan of fewest bits whose predicted relative squared error is at most `maxRelativeError`.
 * Throws KVTC_OPTION_INVALID when no plan within the table's budget is that good.
 */
export function planForError(allocation: Allocation, maxRelativeError: number): PlannedBits {
  const { gain, tables } = allocation;
  const total = totalEnergy(tables);
  const leastRelativeError = total === 0 ? 0 : (total - gain[gain.length - 1]!) / total;
  if (!(maxRelativeError >= leastRelativeError)) {
    throw new KvtcError(
      'KVTC_OPTION_INVALID',
      `no plan within ${allocation.maxBudgetBits} bits has a relative error of ${maxRelativeError}; the best has ${leastRelativeError}`,
      { maxRelativeError, leastRelativeError },
    );
  }
  let low = 0;
  let high = gain.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (total - gain[middle]! <= maxRelativeError * total) high = middle;
    else low = middle + 1;
  }
  return tracePlan(allocation, low);
}

/** Raises row[b] to source[b − cost] + gain where that is more, and notes the move. */
function relax(
  source: Float64Array,
  row: Float64Array,
  choice: Uint8Array,
  cost: number,
  gain: number,
  code: number,
): void {
  for (let b = cost, from = 0; b < row.length; b++, from++) {
    const candidate = source[from]! + gain;
    if (candidate > row[b]!) {
      row[b] = candidate;
      choice[b] = code;
    }
  }
}

/** Moves by rising cost, then size: with strict comparison the earlier of two equals stays. */
function priceMoves(tables: ErrorTables, fp8Metadata: boolean): Move[] {
  return tables.sizes
    .flatMap((table) =>
      tables.types.map((type): Move => {
        const metadata = type === 'fp8' && !fp8Metadata ? 0 : METADATA_BITS;
        return { table, type, units: (table.size * CODE_BITS[type] + metadata) / UNIT_BITS };
      }),
    )
    .toSorted((a, b) => a.units - b.units || a.table.size - b.table.size);
}

/** No plan can spend more: every component at 8 bits and its own metadata. */
function mostUnits({ rank, sizes }: ErrorTables): number {
  const smallest = Math.min(...sizes.map(({ size }) => size).filter((size) => size > 1), rank);
  const singles = sizes.find(({ size }) => size === 1)?.starts.length ?? 0;
  const bits = 8 * rank + METADATA_BITS * (singles + Math.ceil(rank / smallest));
  return Math.ceil(bits / UNIT_BITS);
}

function planBoundaries(tables: ErrorTables): Int32Array {
  const boundaries = new Set([0]);
  for (const { size, starts } of tables.sizes) {
    for (const start of starts) boundaries.add(start).add(start + size);
  }
  return Int32Array.from(boundaries).toSorted();
}

function tracePlan(allocation: Allocation, units: number): PlannedBits {
  const { tables, moves, boundaries, choices, gain } = allocation;
  const indexOf = new Map([...boundaries].map((component, index) => [component, index]));
  const groups: PlanGroup[] = [];
  let usedUnits = 0;
  let left = units;
  for (let index = boundaries.length - 1; index > 0;) {
    const code = choices[index]![left]!;
    if (code === 0) {
      index--;
      continue;
    }
    const { table, type, units: cost } = moves[code - 1]!;
    const start = boundaries[index]! - table.size;
    const exponent = type === 'fp8' ? table.exponents[table.size === 1 ? start : start / RANK_STEP]! : 0;
    groups.push({ start, size: table.size, type, exponent });
    usedUnits += cost;
    left -= cost;
    index = indexOf.get(start)!;
  }
  const last = groups[0];
  const rank = last === undefined ? 0 : Math.ceil((last.start + last.size) / RANK_STEP) * RANK_STEP;
  const total = totalEnergy(tables);
  const squaredError = total - gain[units]!;
  return {
    plan: { rank, groups: groups.toReversed() },
    usedBits: usedUnits * UNIT_BITS,
    squaredError,
    relativeError: total === 0 ? 0 : squaredError / total,
  };
}

function totalEnergy({ energy, outsideEnergy }: ErrorTables): number {
  return energy.reduce((sum, value) => sum + value, outsideEnergy);
}

/** Smallest budget with the gain `value`; `gain` never falls. */
function firstReaching(gain: Float64Array, value: number): number {
  let low = 0;
  let high = gain.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (gain[middle]! >= value) high = middle;
    else low = middle + 1;
  }
  return low;
}
