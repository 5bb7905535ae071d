// Peak memory of `kvtc bench`: this build's own command line in processes of their own. Does not know: times.

import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { RunOptions } from '../base/events.ts';
import { convertState } from '../engines/llama/state.ts';

/** Peak memory of a process that only compresses, or only restores. */
export interface MemoryFigure {
  readonly verb: 'compress' | 'restore';
  readonly tokens: number;
  readonly stateBytes: number;
  readonly peakRssBytes: number;
  /** Peak less the state: Node itself, bases, chunks in flight. */
  readonly aboveStateBytes: number;
}

/**
 * Prints a process's peak in KiB as it ends. Linux's own count of the address space, where there is one: the peak that
 * resourceUsage gives begins with that of the process which forked it.
 */
const REPORT_PEAK = `
  import { readFileSync } from 'node:fs';
  process.on('exit', () => {
    let peak = process.resourceUsage().maxRSS;
    try { peak = /VmHWM:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]; } catch {}
    process.stderr.write('peak=' + peak);
  });`;

/** Runs this build's own command line on a prefix's state, twice, and reads the peak from the child's own account. */
export async function measureMemory(
  options: RunOptions & { readonly modelPath: string; readonly profilePath: string },
  directory: string,
  { state, tokens }: { readonly state: Uint8Array; readonly tokens: Int32Array },
  ratio: number,
): Promise<MemoryFigure[]> {
  const statePath = join(directory, 'memory.state');
  const containerPath = join(directory, 'memory.kvtc');
  const backPath = join(directory, 'memory.back');
  await writeFile(statePath, convertState(state, 'file', tokens));
  const main = fileURLToPath(new URL('../../bin/kvtc.js', import.meta.url));
  const verbs = {
    compress: [
      'compress',
      options.modelPath,
      '--profile',
      options.profilePath,
      '--state',
      statePath,
      '--ratio',
      String(ratio),
      '-o',
      containerPath,
    ],
    restore: ['restore', containerPath, '--profile', options.profilePath, '--model', options.modelPath, '-o', backPath],
  };
  const figures: MemoryFigure[] = [];
  for (const verb of ['compress', 'restore'] as const) {
    const peakRssBytes = await peakOf([main, ...verbs[verb], '--json'], options.signal);
    figures.push({
      verb,
      tokens: tokens.length,
      stateBytes: state.length,
      peakRssBytes,
      aboveStateBytes: peakRssBytes - state.length,
    });
  }
  return figures;
}

/** Peak of a process that opens the numeric backend of this build and ends. */
export function idlePeak(signal: AbortSignal | undefined): Promise<number> {
  const backend = new URL(`../linalg/ggml/backend${extname(fileURLToPath(import.meta.url))}`, import.meta.url);
  const script = `(await import('${backend.href}')).openGgmlBackend().close()`;
  return peakOf(['--input-type=module', '--eval', script], signal);
}

/** Runs Node and reads the peak from its own account, in bytes. */
async function peakOf(nodeArguments: readonly string[], signal: AbortSignal | undefined): Promise<number> {
  const { stderr } = await promisify(execFile)(
    process.execPath,
    ['--import', `data:text/javascript,${encodeURIComponent(REPORT_PEAK)}`, ...nodeArguments],
    { signal, maxBuffer: 1 << 24 },
  );
  return Number(/peak=(\d+)/u.exec(stderr)?.[1]) * 1024;
}
