// A tiny model with a profile of its own and a prefilled state, made once per kind: what tests of the whole way need.

import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { seededRandom } from '../src/base/random.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import type { CalibrateModelOptions, ModelCalibration } from '../src/cache/calibrate.ts';
import type { TextGroup } from '../src/calibration/sample.ts';
import type { ContextOptions } from '../src/engines/llama/session.ts';
import { openModel } from '../src/engines/llama/session.ts';
import type { TinyKind, TinyOptions } from './tiny-gguf.ts';
import { writeTinyModel } from './tiny-gguf.ts';

export interface TinyWorld {
  readonly directory: string;
  readonly modelPath: string;
  readonly profilePath: string;
  readonly calibration: ModelCalibration;
}

/** Text of letters with some order in it: words drawn from a small list. */
export function tinyText(words: number, seed: number): string {
  const random = seededRandom(seed);
  const list = Array.from({ length: 40 }, () =>
    Array.from({ length: 2 + random.below(6) }, () => String.fromCodePoint(97 + random.below(26))).join(''),
  );
  return Array.from({ length: words }, () => list[random.below(list.length)]).join(' ');
}

export const TINY_TEXTS: readonly TextGroup[] = ['first', 'second'].map((name, group) => ({
  name,
  texts: Array.from({ length: 4 }, (_, i) => ({ source: `${name} ${i}`, text: tinyText(400, group * 10 + i) })),
}));

/** Settings of every tiny calibration; tests override single ones. */
export function tinyCalibration(modelPath: string, output: string): CalibrateModelOptions {
  return {
    model: modelPath,
    texts: TINY_TEXTS,
    output,
    codec: 'paper',
    tokens: 4096,
    documentTokens: 512,
    rank: 96,
    ratios: [2, 4, 8],
    seed: 3,
  };
}

export async function makeTinyWorld(kind: TinyKind, options: TinyOptions = {}): Promise<TinyWorld> {
  const directory = await mkdtemp(join(tmpdir(), `kvtc-${kind}-`));
  const modelPath = join(directory, 'model.gguf');
  const profilePath = join(directory, 'profile.safetensors');
  await writeTinyModel(modelPath, kind, options);
  const calibration = await calibrate(tinyCalibration(modelPath, profilePath));
  return { directory, modelPath, profilePath, calibration };
}

/** The state of a fresh context after `tokenCount` tokens of seeded text, with those tokens. */
export async function prefilledState(
  modelPath: string,
  tokenCount: number,
  options: Partial<ContextOptions> = {},
): Promise<{ state: Uint8Array; tokens: Int32Array }> {
  const model = await openModel(modelPath);
  try {
    const tokens = model.tokenize(tinyText(tokenCount, 99), { addSpecial: false }).slice(0, tokenCount);
    const context = await model.createContext({ contextTokens: Math.max(256, tokenCount), ...options });
    await context.decode(tokens, { logits: 'none' });
    return { state: context.getState(), tokens };
  } finally {
    model.close();
  }
}
