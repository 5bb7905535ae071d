// kvtc bench: the figures this project is held to, measured here and now, each beside its bound.

import { access, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelCalibration } from '../../cache/calibrate.ts';
import type { BenchResult } from '../../evaluation/bench.ts';
import type { Evaluation } from '../../evaluation/evaluate.ts';
import { formatBytes, formatCount, formatDuration, formatRatio, formatSmall, table } from '../format.ts';
import type { Arguments, Verb, VerbContext } from '../verb.ts';
import { groupByKind } from './corpus-groups.ts';

/** Figures of the plan (two cores of the reference class); `aim` where it asks for more than the bound. */
const SPEEDUP_BOUNDS: Readonly<Record<string, { readonly bound: number; readonly aim: number }>> = {
  'smollm2-135m': { bound: 12, aim: 20 },
  'qwen2.5-coder-1.5b': { bound: 25, aim: 40 },
};
const MEMORY_BOUND_BYTES = 200e6;
const PRODUCTS_BOUND_GFLOPS = 110;
const ENTROPY_BOUNDS = { decode: 200e6, encode: 120e6 } as const;
const COMPRESS_OVER_RESTORE_BOUND = 1.5;
/** Of SmolLM2 after 100 000 tokens of calibration, by weights and ratio. */
const KL_BOUNDS: Readonly<Record<string, Readonly<Record<number, number>>>> = {
  exact: { 8: 0.0035, 16: 0.0145, 32: 0.031 },
  'as-is': { 8: 0.009, 16: 0.022, 32: 0.045 },
};
const PAPER_RATIO_16 = { least: 17.5, most: 20 } as const;
/** Of SmolLM2, outside the engine's prefill, for 20 000 rows and rank 2 048. */
const CALIBRATION_BOUND_MS = 180_000;
const CALIBRATION_BOUND_TOKENS = 20_000;
/** What 8x takes at the widths of the models here. */
const RANK = 3072;

interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: 'ratio' | 'ms' | 'bytes' | 'gflops' | 'nats' | 'symbols';
  readonly least?: number | undefined;
  readonly most?: number | undefined;
  readonly aim?: number | undefined;
  /** Null where no bound is set. */
  readonly holds: boolean | null;
}

export const verb: Verb = {
  syntax: {
    summary: 'Measure speed, memory and, if asked, quality beside the bounds they are held to',
    positionals: [],
    options: {
      model: { value: 'MODEL', fallback: 'smollm2-135m', help: 'path of a GGUF file, or the name of a pulled model' },
      profile: { value: 'PROFILE', help: 'a profile of the model; without it one is made from the corpora and kept' },
      ratio: { value: 'R', fallback: '16', help: 'ratio to compress at' },
      tokens: { value: 'N', fallback: '100000', help: 'tokens to calibrate that profile on' },
      calibration: { help: 'time a calibration on 20 000 tokens too' },
      quality: { help: 'measure KL too, on exact weights and on the weights as they are; takes long' },
      documents: { value: 'N', fallback: '6', help: 'documents for --quality' },
    },
    details:
      'Let nothing else run meanwhile. Bounds are for two cores; quality bounds for SmolLM2 after 100000 tokens.',
  },
  async run(args, context) {
    const { bench } = await import('../../evaluation/bench.ts');
    const { heldOutTexts } = await import('../../models/corpus.ts');
    const { resolveModel } = await import('../../models/pull.ts');
    const name = args.text('model') ?? 'smollm2-135m';
    const tokens = args.integer('tokens', 512) ?? 100_000;
    const documents = args.integer('documents', 1);
    const modelPath = await resolveModel(name);
    const texts = await heldOutTexts();
    const book = texts.find((text) => text.kind === 'moby-dick')?.text ?? '';
    const { profilePath, calibration } = await profileFor(args, context, modelPath, tokens);
    const speed = await bench({ ...context, modelPath, profilePath, text: book, ratio: args.positive('ratio') });
    const runPath = `${profilePath}.run.jsonl`;
    const asked = { modelPath, profilePath, texts, documents, runPath };
    const quality = args.has('quality') ? await judge(context, asked) : [];
    const timed = args.has('calibration') ? await timeCalibration(context, modelPath) : calibration;
    const figures = [
      ...calibrationFigures(name, timed),
      ...speedFigures(name, speed),
      ...qualityFigures(name, quality),
    ];
    return { json: { figures, speed, quality, calibration: timed }, text: benchText(speed, figures) };
  },
};

async function profileFor(
  args: Arguments,
  context: VerbContext,
  modelPath: string,
  tokens: number,
): Promise<{ profilePath: string; calibration: ModelCalibration | null }> {
  const given = args.text('profile');
  if (given !== undefined) return { profilePath: given, calibration: null };
  const { calibrate } = await import('../../cache/calibrate.ts');
  const { modelIdentity } = await import('../../engines/llama/architecture.ts');
  const { readGguf } = await import('../../engines/llama/gguf.ts');
  const { cacheDirectory } = await import('../../models/cache-directory.ts');
  const { calibrationTexts } = await import('../../models/corpus.ts');
  const { fingerprint } = await modelIdentity(await readGguf(modelPath));
  const directory = join(cacheDirectory(), 'bench');
  const profilePath = join(directory, `${fingerprint.slice(0, 12)}-${tokens}.profile.safetensors`);
  const isThere = await access(profilePath).then(
    () => true,
    () => false,
  );
  if (isThere) return { profilePath, calibration: null };
  await mkdir(directory, { recursive: true });
  const texts = groupByKind(await calibrationTexts());
  return {
    profilePath,
    calibration: await calibrate({
      ...context,
      model: modelPath,
      texts,
      tokens,
      rank: RANK,
      codec: 'paper',
      output: profilePath,
    }),
  };
}

/** A calibration from nothing at the size that the bound is for; its profile is not kept. */
async function timeCalibration(context: VerbContext, modelPath: string): Promise<ModelCalibration> {
  const { calibrate } = await import('../../cache/calibrate.ts');
  const { calibrationTexts } = await import('../../models/corpus.ts');
  const directory = await mkdtemp(join(tmpdir(), 'kvtc-bench-'));
  try {
    const texts = groupByKind(await calibrationTexts());
    const output = join(directory, 'timed.profile');
    return await calibrate({
      ...context,
      model: modelPath,
      texts,
      tokens: CALIBRATION_BOUND_TOKENS,
      codec: 'paper',
      output,
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function judge(
  context: VerbContext,
  options: Pick<
    Parameters<typeof import('../../evaluation/evaluate.ts').evaluate>[0],
    'modelPath' | 'profilePath' | 'texts' | 'documents' | 'runPath'
  >,
): Promise<Evaluation[]> {
  const { evaluate } = await import('../../evaluation/evaluate.ts');
  const { cacheDirectory } = await import('../../models/cache-directory.ts');
  const evaluations: Evaluation[] = [];
  for (const weights of ['exact', 'as-is'] as const) {
    const given = { ...options, weights, ratios: [8, 16, 32], cacheDirectory: cacheDirectory() };
    evaluations.push(await evaluate({ ...context, ...given }));
  }
  return evaluations;
}

function figure(one: Omit<Figure, 'holds'>): Figure {
  const bounded = one.least !== undefined || one.most !== undefined;
  return {
    ...one,
    holds: bounded ? one.value >= (one.least ?? -Infinity) && one.value <= (one.most ?? Infinity) : null,
  };
}

function calibrationFigures(name: string, calibration: ModelCalibration | null): Figure[] {
  if (calibration === null) return [];
  const { elapsedMs, prefillMs, tokens } = calibration;
  const value = elapsedMs.collect + elapsedMs.basis + elapsedMs.plan - prefillMs;
  const bounded = name === 'smollm2-135m' && tokens <= CALIBRATION_BOUND_TOKENS;
  const what = `calibration without prefill, ${formatCount(tokens)} tokens`;
  return [figure({ name: what, value, unit: 'ms', most: bounded ? CALIBRATION_BOUND_MS : undefined })];
}

function speedFigures(name: string, speed: BenchResult): Figure[] {
  const bounds = SPEEDUP_BOUNDS[name];
  return [
    figure({ name: 'prefill', value: speed.prefillMs, unit: 'ms' }),
    figure({ name: 'compress', value: speed.compressMs.median, unit: 'ms' }),
    figure({ name: 'restore', value: speed.restoreMs.median, unit: 'ms' }),
    figure({ name: 'restore, products alone', value: speed.restoreBoundMs, unit: 'ms' }),
    figure({
      name: 'prefill / restore',
      value: speed.restoreSpeedup,
      unit: 'ratio',
      least: bounds?.bound,
      aim: bounds?.aim,
    }),
    figure({
      name: 'compress / restore',
      value: speed.compressOverRestore,
      unit: 'ratio',
      most: COMPRESS_OVER_RESTORE_BOUND,
    }),
    figure({ name: 'products', value: speed.productsGflops.median, unit: 'gflops', least: PRODUCTS_BOUND_GFLOPS }),
    ...(speed.entropy === null
      ? []
      : (['decode', 'encode'] as const).map((what) =>
          figure({
            name: `entropy stage, ${what}, one core`,
            value: (speed.entropy as NonNullable<BenchResult['entropy']>)[`${what}PerSecond`].median,
            unit: 'symbols',
            least: ENTROPY_BOUNDS[what],
          }),
        )),
    ...speed.memory.map(({ verb: what, tokens, aboveStateBytes }) =>
      figure({
        name: `memory above engine and state, ${what} ${formatCount(tokens)} tokens`,
        value: aboveStateBytes - speed.idlePeakRssBytes,
        unit: 'bytes',
        most: MEMORY_BOUND_BYTES,
      }),
    ),
    figure({ name: 'memory of Node with the engine, idle', value: speed.idlePeakRssBytes, unit: 'bytes' }),
  ];
}

function qualityFigures(name: string, evaluations: readonly Evaluation[]): Figure[] {
  const isReference = name === 'smollm2-135m';
  return evaluations.flatMap(({ rows, floor, settings }) => {
    const weights = settings.weights === 'as-is' ? 'as-is' : 'exact';
    const kl = rows.map((row) =>
      figure({
        name: `KL at ${row.treatment}, ${weights} weights`,
        value: row.klNats,
        unit: 'nats',
        most: isReference && row.ratio !== null ? KL_BOUNDS[weights]?.[row.ratio] : undefined,
      }),
    );
    const at16 = rows.find((row) => row.ratio === 16);
    const ratio =
      weights === 'exact' && at16?.paperRatio
        ? [
            figure({
              name: 'paper ratio at 16x',
              value: at16.paperRatio,
              unit: 'ratio',
              ...(isReference ? PAPER_RATIO_16 : {}),
            }),
            figure({ name: 'effective ratio at 16x', value: at16.effectiveRatio ?? 0, unit: 'ratio' }),
          ]
        : [];
    return [...ratio, ...kl, figure({ name: `KL floor, ${weights} weights`, value: floor.klNats, unit: 'nats' })];
  });
}

function benchText(speed: BenchResult, figures: readonly Figure[]): string {
  const { machine } = speed;
  const shown = (value: number | undefined, unit: Figure['unit']): string => {
    if (value === undefined) return '';
    if (unit === 'ms') return formatDuration(value);
    if (unit === 'bytes') return formatBytes(value);
    if (unit === 'nats') return formatSmall(value);
    if (unit === 'symbols') return `${(value / 1e6).toFixed(0)} M/s`;
    return unit === 'ratio' ? formatRatio(value) : `${value.toFixed(0)} GFLOP/s`;
  };
  const bound = ({ least, most, unit }: Figure): string => {
    if (least !== undefined && most !== undefined) return `${shown(least, unit)} to ${shown(most, unit)}`;
    if (least !== undefined) return `≥ ${shown(least, unit)}`;
    return most === undefined ? '' : `≤ ${shown(most, unit)}`;
  };
  const holds = { true: 'yes', false: 'NO', null: '' } as const;
  return [
    `${speed.model}, ${formatCount(speed.tokens)} tokens at ratio ${speed.ratio}; ` +
      `${machine.processor.trim()}, ${machine.threads} threads, Node ${machine.node}, llama.cpp ${machine.engine}`,
    '',
    table(
      figures.map((one) => [
        one.name,
        shown(one.value, one.unit),
        bound(one),
        shown(one.aim, one.unit),
        holds[`${one.holds}`],
      ]),
      ['left', 'right', 'right', 'right', 'left'],
      ['figure', 'measured', 'bound', 'aim', 'holds'],
    ),
  ].join('\n');
}
