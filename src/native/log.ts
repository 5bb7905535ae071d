// Catches the log of llama.cpp and ggml, so that nothing is printed and failures can say what the library said.
// Does not know which call a line belongs to: callers clear before a call and take after it.

import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';

const LEVEL_ERROR = 4;
const LEVEL_CONTINUATION = 5;
const KEPT_LINES = 8;

let lines: string[] = [];
let lastLevel = 0;

/** Routes the log of llama.cpp and ggml here for the rest of the process. */
export function captureLog(llama: LibraryHandle): void {
  const proto = koffi.proto('void kvtc_log_callback(int level, const char *text, void *data)');
  const callback = koffi.register((level: number, text: string) => {
    if (level !== LEVEL_CONTINUATION) lastLevel = level;
    else if (lastLevel === LEVEL_ERROR && lines.length > 0) lines[lines.length - 1] += text;
    if (level === LEVEL_ERROR) lines = [...lines.slice(1 - KEPT_LINES), text];
  }, koffi.pointer(proto));
  llama.func('void llama_log_set(void *callback, void *data)')(callback, null);
}

/** Forgets what was said so far. */
export function clearEngineErrors(): void {
  lines = [];
}

/** The error lines since the last clear, joined; empty when there were none. */
export function engineErrors(): string {
  return lines.map((line) => line.trim()).join('; ');
}
