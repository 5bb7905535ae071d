// kvtc demo: fetches a small model, calibrates once, and shows on a text it has not seen what kvtc does.

import { join } from 'node:path';
import type { DemoResult } from '../../evaluation/demo.ts';
import {
  bytesTable,
  formatBytes,
  formatCount,
  formatDuration,
  formatPercent,
  formatRatio,
  formatSmall,
  ratiosText,
  table,
} from '../format.ts';
import type { Verb } from '../verb.ts';
import { groupByKind } from './corpus-groups.ts';

const MODEL = 'smollm2-135m';
/** Enough for prefix and continuation at four bytes a token and more. */
const HELD_OUT_CHARACTERS = 60_000;

export const verb: Verb = {
  syntax: {
    summary: 'Show it all on a small real model: calibrate, compress, restore, compare',
    positionals: [],
    options: {},
    details: [
      'Downloads SmolLM2-135M (98 MB, checked) and calibrates on first use; both stay in the cache folder.',
      'The text is the beginning of Moby Dick, which the calibration does not see.',
    ].join('\n'),
  },
  async run(_args, context) {
    const { demo } = await import('../../evaluation/demo.ts');
    const { cacheDirectory } = await import('../../models/cache-directory.ts');
    const { calibrationTexts, heldOutTexts } = await import('../../models/corpus.ts');
    const { modelIdentity } = await import('../../engines/llama/architecture.ts');
    const { readGguf } = await import('../../engines/llama/gguf.ts');
    const { pullModel } = await import('../../models/pull.ts');
    const { mkdir } = await import('node:fs/promises');
    const directory = join(cacheDirectory(), 'demo');
    const calibration = await calibrationTexts();
    const heldOut = (await heldOutTexts()).filter((text) => text.kind === 'moby-dick');
    const { path } = await pullModel(MODEL, context);
    const { fingerprint } = await modelIdentity(await readGguf(path));
    await mkdir(directory, { recursive: true });
    const result = await demo({
      ...context,
      modelPath: path,
      profilePath: join(directory, `${MODEL}-${fingerprint.slice(0, 12)}.profile.safetensors`),
      containerPath: join(directory, 'moby-dick.kvtc'),
      calibrationTexts: groupByKind(calibration),
      heldOut: { source: 'Moby Dick', text: (heldOut[0]?.text ?? '').slice(0, HELD_OUT_CHARACTERS) },
    });
    return { json: { ...result }, text: demoText(result) };
  },
};

function demoText(result: DemoResult): string {
  const perToken = (ms: number): string => `${(ms / result.prefixTokens).toFixed(2)} ms a token`;
  const quote = (text: string): string =>
    text
      .trim()
      .split(/\s*\n\s*/)
      .join(' ')
      .replace(/(.{1,96})(?: |$)/g, '  $1\n')
      .trimEnd();
  const calibration =
    result.calibrateSeconds === 0
      ? 'profile of an earlier run'
      : `calibrated in ${formatDuration(result.calibrateSeconds * 1000)}`;
  return [
    `${result.model}, ${formatCount(result.prefixTokens)} tokens of ${result.text}, target ratio ${result.ratio} (${calibration})`,
    '',
    `The cache takes ${formatBytes(result.rawBytes)} in the engine and ${formatBytes(result.storedBytes)} as a file: ` +
      `${ratiosText(result.paperRatio, result.effectiveRatio)}.`,
    '',
    bytesTable(
      result.parts.map(({ name, byteLength }) => ({ name: name.replaceAll('-', ' '), byteLength })),
      result.storedBytes,
    ),
    '',
    'Going on from the restored cache, compared with the exact one:',
    '',
    table(
      [
        [
          'KL',
          `${formatSmall(result.klNats)} nats a token`,
          `engine's own rounding: ${formatSmall(result.floorKlNats)}`,
        ],
        ['KL when copying', `${formatSmall(result.copyKlNats)} nats a token`, ''],
        ['same likeliest token', formatPercent(result.top1Agreement), ''],
        ['perplexity', result.perplexityRestored.toFixed(3), `exact: ${result.perplexityExact.toFixed(3)}`],
      ],
      ['left', 'left', 'left'],
    ),
    '',
    table(
      [
        ['prefill', formatDuration(result.prefillMs), perToken(result.prefillMs), ''],
        ['compress', formatDuration(result.compressMs), perToken(result.compressMs), ''],
        [
          'restore',
          formatDuration(result.restoreMs),
          perToken(result.restoreMs),
          `${formatRatio(result.prefillMs / result.restoreMs)} faster than prefill`,
        ],
        ['load bases', formatDuration(result.loadBasesMs), 'once per program', ''],
        ['peak memory', formatBytes(result.peakRssBytes), 'of the whole run', ''],
      ],
      ['left', 'right', 'left', 'left'],
    ),
    '',
    'From the exact cache the model writes:',
    quote(result.generatedExact),
    'From the restored cache:',
    quote(result.generatedRestored),
    '',
    `Look closer: kvtc inspect ${result.containerPath}`,
  ].join('\n');
}
