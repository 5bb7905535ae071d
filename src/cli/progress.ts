// Progress events → a bar with remaining time on a terminal, a plain line now and then elsewhere, nothing when quiet.
// Always on stderr. Does not know: which operation reports.

import { SingleBar } from 'cli-progress';
import type { KvtcEvent, ProgressEvent } from '../base/events.ts';
import { formatBytes, formatCount, formatDuration } from './format.ts';

/** Elsewhere than on a terminal a line is written this often. */
const PLAIN_LINE_MS = 10_000;
/** Phases that took longer leave a line behind. */
const WORTH_A_LINE_MS = 2000;

export interface ProgressView {
  readonly onEvent: (event: KvtcEvent) => void;
  /** Removes the bar. */
  readonly close: () => void;
}

export function progressView(stream: NodeJS.WriteStream, quiet: boolean): ProgressView {
  if (quiet) return { onEvent: () => undefined, close: () => undefined };
  return stream.isTTY ? barView(stream) : plainView(stream);
}

function amount(value: number, unit: string): string {
  return unit === 'bytes' ? formatBytes(value) : formatCount(value);
}

/** Whether a phase begins, be it one that was there before: each stream has its own passes. */
function isFresh(event: ProgressEvent, last: ProgressEvent | null): boolean {
  return event.phase !== last?.phase || event.done < last.done;
}

/** From the mean speed of the phase so far; null before there is one. */
function remainingMs(event: ProgressEvent, startedMs: number): number | null {
  if (event.done <= 0 || event.total <= event.done) return null;
  return ((performance.now() - startedMs) / event.done) * (event.total - event.done);
}

function barView(stream: NodeJS.WriteStream): ProgressView {
  let bar: SingleBar | null = null;
  let last: ProgressEvent | null = null;
  let startedMs = 0;
  const finish = (): void => {
    if (bar === null || last === null) return;
    bar.stop();
    bar = null;
    const elapsedMs = performance.now() - startedMs;
    if (elapsedMs < WORTH_A_LINE_MS) return;
    const unit = last.unit === 'bytes' ? '' : ` ${last.unit}`;
    stream.write(`${last.phase.padEnd(12)} ${amount(last.done, last.unit)}${unit} in ${formatDuration(elapsedMs)}\n`);
  };
  const start = (event: ProgressEvent): void => {
    finish();
    startedMs = performance.now();
    bar = new SingleBar({
      stream,
      fps: 8,
      hideCursor: true,
      clearOnComplete: true,
      gracefulExit: false,
      barsize: 30,
      format: (options, params) => {
        if (last === null) return '';
        const filled = Math.round(params.progress * 30);
        const bars = '█'.repeat(filled) + '░'.repeat(Math.max(0, 30 - filled));
        const left = remainingMs(last, startedMs);
        const unit = last.unit === 'bytes' ? '' : ` ${last.unit}`;
        const counts = `${amount(last.done, last.unit)} of ${amount(last.total, last.unit)}${unit}`;
        const rest = left === null ? '' : `, ${formatDuration(Math.max(1000, left)).replace(/\.\d+ s$/, ' s')} left`;
        const percent = `${Math.floor(params.progress * 100)} %`.padStart(5);
        return `${last.phase.padEnd(12)} ${bars} ${percent}  ${counts}${rest}`.slice(
          0,
          Math.max(20, (stream.columns || 80) - 1),
        );
      },
    });
    bar.start(event.total, event.done);
  };
  return {
    onEvent: (event) => {
      if (event.type === 'warning') {
        finish();
        stream.write(`warning: ${event.message}\n`);
        return;
      }
      const fresh = bar === null || isFresh(event, last);
      if (fresh && bar !== null) finish();
      last = event;
      if (fresh) start(event);
      bar?.setTotal(event.total);
      bar?.update(event.done);
    },
    close: finish,
  };
}

function plainView(stream: NodeJS.WriteStream): ProgressView {
  let last: ProgressEvent | null = null;
  let startedMs = 0;
  let writtenMs = performance.now();
  return {
    onEvent: (event) => {
      if (event.type === 'warning') {
        stream.write(`warning: ${event.message}\n`);
        return;
      }
      const nowMs = performance.now();
      if (isFresh(event, last)) startedMs = nowMs;
      last = event;
      if (nowMs - writtenMs < PLAIN_LINE_MS) return;
      writtenMs = nowMs;
      const left = remainingMs(event, startedMs);
      const rest = left === null ? '' : `, ${formatDuration(left)} left`;
      const unit = event.unit === 'bytes' ? '' : ` ${event.unit}`;
      stream.write(
        `${event.phase}: ${amount(event.done, event.unit)} of ${amount(event.total, event.unit)}${unit}${rest}\n`,
      );
    },
    close: () => undefined,
  };
}
