// kvtc compress: a prompt, or a state that an engine saved → a container.

import { readFile } from 'node:fs/promises';
import { KvtcError } from '../../base/errors.ts';
import type { CompressResult } from '../../cache/compress.ts';
import { bytesTable, formatBytes, formatCount, formatDuration, ratiosText, type NamedBytes } from '../format.ts';
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
      ratio: { value: 'R', fallback: '16', help: 'one of the ratios the profile has plans for' },
      sinks: { value: 'N', fallback: '4', help: 'oldest tokens kept exact' },
      window: { value: 'N', fallback: '128', help: 'newest tokens kept exact; 0 for none' },
    },
    details: 'The ratio is a target for the coded tokens; both measured ratios are shown.',
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
      sinks: args.integer('sinks', 0),
      window: args.integer('window', 0),
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
function partsOf({ parts }: CompressResult): NamedBytes[] {
  const kinds = new Map<string, number>();
  for (const { kind, byteLength } of parts) kinds.set(kind, (kinds.get(kind) ?? 0) + byteLength);
  return [...kinds].map(([kind, byteLength]) => ({ name: kind.replaceAll('-', ' '), byteLength }));
}

function jsonOf(output: string, result: CompressResult): Readonly<Record<string, unknown>> {
  return { output, ...result, parts: partsOf(result) };
}

function compressionText(output: string, result: CompressResult): string {
  const { tokenCount, rawBytes, storedBytes, paperRatio, effectiveRatio, elapsedMs } = result;
  return [
    `${output}: ${formatCount(tokenCount)} tokens, ${formatBytes(rawBytes)} of cache in ${formatBytes(storedBytes)}`,
    `${ratiosText(paperRatio, effectiveRatio)}; took ${formatDuration(elapsedMs)}`,
    '',
    bytesTable(partsOf(result), storedBytes),
  ].join('\n');
}
