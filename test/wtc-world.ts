// Profiles of the codec wtc on a tiny model, a state to code with them, and how far a restored state is off.
// Does not know what is tested with them.

import { join } from 'node:path';
import type { StreamKind } from '../src/base/geometry.ts';
import { STREAMS } from '../src/base/geometry.ts';
import { f16ToF32 } from '../src/base/half.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import type { Coder } from '../src/cache/coder.ts';
import { openCoder } from '../src/cache/coder.ts';
import type { CompressOptions } from '../src/cache/compress.ts';
import { writeSensitivity } from '../src/calibration/sensitivity-file.ts';
import { memoryTarget } from '../src/container/target.ts';
import { openModel } from '../src/engines/llama/session.ts';
import { gatherRows, parseState, rowBytesOf } from '../src/engines/llama/state.ts';
import { madeUpSensitivity } from './made-up-sensitivity.ts';
import type { TinyWorld } from './tiny-world.ts';
import { makeTinyWorld, prefilledState, tinyCalibration } from './tiny-world.ts';

export const TOKENS = 700;

export interface WtcWorld {
  readonly world: TinyWorld;
  readonly layers: number;
  /** TOKENS tokens, f16. */
  readonly state: Uint8Array;
  readonly tokens: Int32Array;
  /** Profiles of the same rows: all values alike, weighted, weighted with token steps. */
  readonly paths: { readonly plain: string; readonly weighted: string; readonly steps: string };
  /** All layers' rows as the state holds them. */
  readonly rowsOf: (bytes: Uint8Array, stream: StreamKind, startToken: number, endToken: number) => Uint8Array;
  /** Of the stream that is further off: squared error over energy. */
  readonly relativeError: (restored: Uint8Array, startToken: number, endToken: number) => number;
  /** The state compressed and restored. */
  readonly through: (
    coder: Coder,
    options: CompressOptions,
  ) => Promise<{ readonly bytes: Uint8Array; readonly restored: Uint8Array; readonly paperRatio: number }>;
}

export async function makeWtcWorld(): Promise<WtcWorld> {
  const world = await makeTinyWorld('llama');
  const { state, tokens } = await prefilledState(world.modelPath, TOKENS);
  const model = await openModel(world.modelPath);
  const { identity } = model;
  const { layers } = identity.geometry;
  const sensitivity = madeUpSensitivity(identity, (text) => model.tokenize(text, { addSpecial: false }));
  model.close();
  const at = (name: string): string => join(world.directory, name);
  await writeSensitivity(at('weighted.sensitivity'), { ...sensitivity, importance: null });
  await writeSensitivity(at('steps.sensitivity'), sensitivity);
  const paths = { plain: at('plain'), weighted: at('weighted'), steps: at('steps') };
  for (const name of ['plain', 'weighted', 'steps'] as const) {
    await calibrate({
      ...tinyCalibration(world.modelPath, paths[name]),
      codec: 'wtc',
      sensitivity: name === 'plain' ? 'none' : at(`${name}.sensitivity`),
    });
  }
  const rowsOf: WtcWorld['rowsOf'] = (bytes, stream, startToken, endToken) => {
    const view = parseState(bytes);
    const rows = new Uint8Array((endToken - startToken) * layers * rowBytesOf(view, stream));
    gatherRows(view, stream, { startLayer: 0, endLayer: layers }, { startToken, endToken }, rows);
    return rows;
  };
  return {
    world,
    layers,
    state,
    tokens,
    paths,
    rowsOf,
    relativeError: (restored, startToken, endToken) =>
      Math.max(
        ...STREAMS.map((stream) => {
          const a = new Uint16Array(rowsOf(state, stream, startToken, endToken).buffer);
          const b = new Uint16Array(rowsOf(restored, stream, startToken, endToken).buffer);
          let error = 0;
          let energy = 0;
          for (let i = 0; i < a.length; i++) {
            error += (f16ToF32(a[i] as number) - f16ToF32(b[i] as number)) ** 2;
            energy += f16ToF32(a[i] as number) ** 2;
          }
          return error / energy;
        }),
      ),
    through: async (coder, options) => {
      const target = memoryTarget();
      const { paperRatio } = await coder.compress(state, target, { tokens, ...options });
      const bytes = target.bytes();
      return { bytes, paperRatio, restored: (await coder.restore(bytes)).state };
    },
  };
}

export async function withCoder<T>(path: string, use: (coder: Coder) => Promise<T>): Promise<T> {
  const coder = await openCoder(path);
  try {
    return await use(coder);
  } finally {
    await coder.close();
  }
}
