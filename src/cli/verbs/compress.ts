// kvtc compress: a prompt, or a state that an engine saved → a container.

import { readFile } from 'node:fs/promises';
import { KvtcError } from '../../base/errors.ts';
import type { CodedResult } from '../../cache/coder.ts';
import {
  bytesTable,
  formatBytes,
  formatCount,
  formatDuration,
  formatSmall,
  ratiosText,
  type NamedBytes,
} from '../format.ts';
import type { Verb } from '../verb.ts';
import { MODEL_POSITIONAL, PROFILE_OPTION } from './options.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Compress the cache of a prompt, or a saved state, to a container',
    positionals: [MODEL_POSITIONAL],
    options: {
      profile: PROFILE_OPTION,
      prompt: { value: 'FILE', help: 'text to prefill and compress' },
      state: { value: 'FILE', help: 'sequence state saved by llama.cpp or node-llama-cpp, instead of a prompt' },
      output: { value: 'OUT.kvtc', short: 'o', required: true, help: 'the container to write' },
      ratio: { value: 'R', fallback: '16', help: 'a ratio that the profile serves' },
      step: { value: 'S', help: 'wtc: the quantiser step of keys, instead of a ratio' },
      'max-kl': { value: 'NATS', help: 'instead of a ratio: the highest one measured to cost no more a token' },
      sinks: { value: 'N', fallback: '4', help: 'oldest tokens treated with care' },
      'sink-mode': { value: 'exact|finer', help: 'keep all sinks exact (paper) or the first alone (wtc’s default)' },
      window: { value: 'N', fallback: '128', help: 'newest tokens treated with care; 0 for none' },
      'window-mode': { value: 'exact|finer', help: 'keep the window exact (paper) or code it finer (wtc’s default)' },
    },
    details: [
      'The ratio is a target for the coded tokens; both measured ratios are shown.',
      '--max-kl goes by what kvtc verify --quality has written into the profile, by the worst of its texts;',
      'profiles of wtc are also read between measured ratios, never beyond.',
    ].join('\n'),
  },
  async run(args, context) {
    const prompt = args.text('prompt');
    const state = args.text('state');
    if ((prompt === undefined) === (state === undefined)) {
      throw new KvtcError('KVTC_OPTION_INVALID', 'give either --prompt or --state; see: kvtc compress --help');
    }
    const options = {
      ...context,
      profile: args.text('profile') ?? '',
      output: args.text('output') ?? '',
      ratio: args.positive('ratio'),
      maxKlNats: args.positive('max-kl'),
      sinks: args.integer('sinks', 0),
      sinkMode: args.choice('sink-mode', ['exact', 'finer']),
      window: args.integer('window', 0),
      step: args.positive('step'),
      windowMode: args.choice('window-mode', ['exact', 'finer']),
    };
    const { resolveModel } = await import('../../models/pull.ts');
    const model = await resolveModel(args.positionals[0] ?? '');
    const { compressPrompt, compressSaved } = await import('../../cache/prompt.ts');
    if (state !== undefined) {
      const result = await compressSaved({ ...options, model, state });
      return { json: jsonOf(options.output, result), text: compressionText(options.output, result) };
    }
    const text = await readFile(prompt ?? '', 'utf8').catch((error: unknown) => {
      throw new KvtcError('KVTC_FILE_NOT_FOUND', `cannot read ${prompt}`, { path: prompt }, { cause: error });
    });
    const result = await compressPrompt({ ...options, model, prompt: text });
    const prefill = `prefill took ${formatDuration(result.prefillMs)}`;
    return { json: jsonOf(options.output, result), text: `${compressionText(options.output, result)}\n${prefill}` };
  },
};

/** A line per kind of part; `kvtc inspect` tells more. */
function partsOf({ parts }: CodedResult): NamedBytes[] {
  const kinds = new Map<string, number>();
  for (const { kind, byteLength } of parts) kinds.set(kind, (kinds.get(kind) ?? 0) + byteLength);
  return [...kinds].map(([kind, byteLength]) => ({ name: kind.replaceAll('-', ' '), byteLength }));
}

function jsonOf(output: string, result: CodedResult): Readonly<Record<string, unknown>> {
  return { output, ...result, parts: partsOf(result) };
}

function compressionText(output: string, result: CodedResult): string {
  const { tokenCount, rawBytes, storedBytes, paperRatio, effectiveRatio, elapsedMs } = result;
  return [
    `${output}: ${formatCount(tokenCount)} tokens, ${formatBytes(rawBytes)} of cache in ${formatBytes(storedBytes)}`,
    `${ratiosText(paperRatio, effectiveRatio)}; took ${formatDuration(elapsedMs)}`,
    ...costText(result),
    '',
    bytesTable(partsOf(result), storedBytes),
  ].join('\n');
}

function costText({ chosen }: CodedResult): string[] {
  if (chosen === null || chosen.measuredKlNats === null) return [];
  const ratio = Number(chosen.ratio.toPrecision(4));
  const cost = `at most ${formatSmall(chosen.measuredKlNats)} nats a token`;
  return [
    chosen.interpolated === true
      ? `ratio ${ratio} costs ${cost}, read between measured ratios`
      : `ratio ${ratio} was measured to cost ${cost}`,
  ];
}
