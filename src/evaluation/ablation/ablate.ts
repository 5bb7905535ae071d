// `kvtc ablate`: what each choice of the codec is worth, every variant on the same documents and prefixes.
// Joins evaluation, variants, new plans and new profiles; does not know how any of them works.

import { createHash } from 'node:crypto';
import { access, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { KvtcError } from '../../base/errors.ts';
import { openTransforms } from '../../cache/transforms.ts';
import { calibrate } from '../../cache/calibrate.ts';
import { CALIBRATION_DEFAULTS } from '../../calibration/calibrate.ts';
import type { TextGroup } from '../../calibration/sample.ts';
import { sampleDocuments } from '../../calibration/sample.ts';
import { modelIdentity } from '../../engines/llama/architecture.ts';
import { readGguf } from '../../engines/llama/gguf.ts';
import { openProfile } from '../../profile/open-profile.ts';
import type { EvaluateOptions, Evaluation, TreatmentWorld } from '../evaluate.ts';
import { EVALUATE_DEFAULTS, evaluate } from '../evaluate.ts';
import type { EvaluationRow } from '../summary.ts';
import { kvtcTreatment } from '../treatment.ts';
import { measureTables, replan } from './replan.ts';
import type { AblationSet, Variant } from './variants.ts';
import {
  ABLATION_SETS,
  CODING_SETS,
  LEARNING_SETS,
  PLANNING_SETS,
  PLAN_RULES,
  codingVariants,
  profileVariant,
} from './variants.ts';

/** Calibration texts that plan bits: as many documents as calibration itself draws its held-out rows from. */
const PLAN_DOCUMENTS = 4;
const PLAN_DOCUMENT_TOKENS = 1024;
const LEARN_TOKENS = 20_000;
const SEEDS = [CALIBRATION_DEFAULTS.seed, CALIBRATION_DEFAULTS.seed + 1, CALIBRATION_DEFAULTS.seed + 2];

export interface AblateOptions extends Omit<EvaluateOptions, 'ratios' | 'treatments' | 'sinks' | 'window'> {
  /** Default: those of coding, which learn nothing anew. */
  readonly sets?: readonly AblationSet[] | undefined;
  /** Ratios at which everything is compared; default 16. */
  readonly ratios?: readonly number[] | undefined;
  /** Texts to plan on and to calibrate with, none of them evaluated on; a group is a domain. */
  readonly calibrationTexts?: readonly TextGroup[] | undefined;
  /** Tokens of one calibration; default 20 000. */
  readonly calibrationTokens?: number | undefined;
  /** Tokens of one document of a calibration; default: as `calibrate`. */
  readonly calibrationDocumentTokens?: number | undefined;
  readonly rank?: number | undefined;
}

/** A row of an evaluation, with the setting it stands for. */
export interface AblationRow extends EvaluationRow {
  readonly set: AblationSet;
  readonly value: string | number;
  /** The ratio it is compared at. */
  readonly atRatio: number;
}

export interface Ablation extends Evaluation {
  /** A row per value of each set; a variant that belongs to several sets, as the defaults do, stands in each. */
  readonly ablations: readonly AblationRow[];
}

/**
 * Measures all variants of the sets in one evaluation. Profiles that are learned for it are kept below `cacheDirectory`
 * and found again. Throws KVTC_OPTION_INVALID when a set needs calibration texts and there are none, and what evaluate
 * and calibrate throw.
 */
export async function ablate(options: AblateOptions): Promise<Ablation> {
  const { sets = CODING_SETS, ratios = [16], calibrationTexts = [], ...rest } = options;
  const known: readonly string[] = ABLATION_SETS;
  const wrong = sets.find((set) => !known.includes(set));
  if (wrong !== undefined || sets.length === 0 || ratios.length === 0) {
    const message = `ablations ${sets.join(', ') || 'none'} at ratios ${ratios.join(', ') || 'none'}; sets are ${known.join(', ')}`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'sets' });
  }
  const learning = sets.filter((set) => isOneOf(LEARNING_SETS, set));
  const needing = sets.find((set) => !isOneOf(CODING_SETS, set));
  if (needing !== undefined && calibrationTexts.length === 0) {
    const message = `the ablation of ${needing} needs calibration texts`;
    throw new KvtcError('KVTC_OPTION_INVALID', message, { option: 'calibrationTexts' });
  }
  const learned = await learnProfiles(options, learning, calibrationTexts, ratios);
  let variants: readonly Variant[] = [];
  const evaluation = await evaluate({
    ...rest,
    ratios,
    treatments: async (world) => {
      variants = [
        ...sets.flatMap((set) =>
          isOneOf(CODING_SETS, set)
            ? ratios.flatMap((ratio) =>
                codingVariants(set, world.transforms, ratio, options.prefixTokens ?? EVALUATE_DEFAULTS.prefixTokens),
              )
            : [],
        ),
        ...(await plannedVariants(world, options, sets, ratios, calibrationTexts)),
        ...(await learnedVariants(world, learned, ratios)),
      ];
      // The evaluation measures the defaults itself.
      const labels = new Set(ratios.map((ratio) => kvtcTreatment(world.transforms, { ratio }).label));
      const further: Variant['treatment'][] = [];
      for (const { treatment } of variants) {
        if (labels.has(treatment.label)) continue;
        labels.add(treatment.label);
        further.push(treatment);
      }
      return further;
    },
  });
  const rows = new Map(evaluation.rows.map((row) => [row.treatment, row]));
  return {
    ...evaluation,
    ablations: variants.flatMap(({ set, value, ratio, treatment }) => {
      const row = rows.get(treatment.label);
      return row === undefined ? [] : [{ ...row, set, value, atRatio: ratio }];
    }),
  };
}

async function plannedVariants(
  world: TreatmentWorld,
  options: AblateOptions,
  sets: readonly AblationSet[],
  ratios: readonly number[],
  texts: readonly TextGroup[],
): Promise<Variant[]> {
  const planning = PLANNING_SETS.filter((set) => sets.includes(set));
  if (planning.length === 0) return [];
  const { transforms, model } = world;
  const { profile, backend } = transforms;
  if (profile.codec !== 'kvtc-paper') {
    throw new KvtcError('KVTC_OPTION_INVALID', `profiles of ${profile.codec} have no bit plans to change`);
  }
  const documents = sampleDocuments(texts, {
    tokens: PLAN_DOCUMENTS * PLAN_DOCUMENT_TOKENS,
    documentTokens: PLAN_DOCUMENT_TOKENS,
    seed: CALIBRATION_DEFAULTS.seed,
    tokenize: (text) => model.tokenize(text, { addSpecial: false }),
  });
  const context = await model.createContext({ contextTokens: PLAN_DOCUMENT_TOKENS });
  try {
    const tables = await measureTables(transforms, context, documents, CALIBRATION_DEFAULTS.sinks, options);
    return planning.flatMap((set) =>
      PLAN_RULES[set].flatMap(([value, rules]) =>
        ratios.flatMap((ratio) => {
          const changed = replan(profile, tables, ratio, rules);
          if (changed === null) return [];
          const planned = openTransforms(changed, backend);
          world.onClose(() => planned.close());
          return [profileVariant(set, value, planned, ratio)];
        }),
      ),
    );
  } finally {
    context.close();
  }
}

interface LearnedProfile {
  readonly set: AblationSet;
  readonly value: string | number;
  readonly path: string;
}

async function learnedVariants(
  world: TreatmentWorld,
  learned: readonly LearnedProfile[],
  ratios: readonly number[],
): Promise<Variant[]> {
  const variants: Variant[] = [];
  for (const { set, value, path } of learned) {
    const profile = await openProfile(path);
    world.onClose(() => profile.close());
    const transforms = openTransforms(profile, world.transforms.backend);
    world.onClose(() => transforms.close());
    variants.push(...ratios.map((ratio) => profileVariant(set, value, transforms, ratio)));
  }
  return variants;
}

/** Calibrates what the learning sets ask for, one after the other; sums of equal texts are collected once. */
async function learnProfiles(
  options: AblateOptions,
  sets: readonly AblationSet[],
  texts: readonly TextGroup[],
  ratios: readonly number[],
): Promise<LearnedProfile[]> {
  if (sets.length === 0) return [];
  const { fingerprint, geometry } = await modelIdentity(await readGguf(options.modelPath));
  const folder = join(options.cacheDirectory, 'ablate', fingerprint.slice(0, 16));
  await mkdir(folder, { recursive: true });
  const tokens = options.calibrationTokens ?? LEARN_TOKENS;
  const learned: LearnedProfile[] = [];
  const learn = async (
    set: AblationSet,
    value: string | number,
    change: {
      readonly tokens?: number;
      readonly seed?: number;
      readonly layersPerBasis?: number;
      readonly texts?: readonly TextGroup[];
    },
  ): Promise<void> => {
    const settings = {
      tokens,
      seed: CALIBRATION_DEFAULTS.seed,
      documentTokens: options.calibrationDocumentTokens,
      rank: options.rank,
      ratios,
      ...change,
      texts: change.texts ?? texts,
    };
    const path = join(folder, `${digestOf(settings)}.safetensors`);
    if (!(await exists(path))) {
      await calibrate({
        ...settings,
        model: options.modelPath,
        codec: 'paper',
        output: path,
        // One place for all bases of the same rows: what was collected for one is there for the next.
        workDirectory: join(folder, `${digestOf({ ...settings, layersPerBasis: 0, rank: 0, ratios: 0 })}.work`),
        keepWork: set === 'layers',
        threads: options.threads,
        signal: options.signal,
        onEvent: options.onEvent,
      });
    }
    learned.push({ set, value, path });
  };
  for (const set of sets) {
    if (set === 'layers') {
      for (let layers = 1; layers <= geometry.layers / 2; layers *= 2) {
        await learn(set, layers, { layersPerBasis: layers });
      }
      await learn(set, 'all', {});
    } else if (set === 'tokens') {
      for (const share of [0.25, 0.5, 1])
        await learn(set, Math.round(tokens * share), { tokens: Math.round(tokens * share) });
    } else if (set === 'domain') {
      for (const group of texts) await learn(set, group.name, { texts: [group] });
      if (texts.length > 1) await learn(set, 'mixed', {});
    } else {
      for (const seed of SEEDS) await learn(set, seed, { seed });
    }
  }
  return learned;
}

function digestOf(settings: object): string {
  return createHash('sha256').update(JSON.stringify(settings)).digest('hex').slice(0, 16);
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

function isOneOf<T extends string>(names: readonly T[], name: string): name is T {
  return (names as readonly string[]).includes(name);
}
