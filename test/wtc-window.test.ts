// What the codec wtc does with the newest tokens, on tiny models: finer steps, exact rows, nothing of either.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createChunkDecoder, ranksInUse } from '../src/cache/chunk-coder.ts';
import { floatPool } from '../src/base/float-pool.ts';
import { openContainer } from '../src/container/reader.ts';
import { memoryTarget } from '../src/container/target.ts';
import { openModel } from '../src/engines/llama/session.ts';
import { TERM_BLOCK } from '../src/linalg/backend.ts';
import { TOKENS, makeWtcWorld, withCoder } from './wtc-world.ts';

const { world, state, tokens, paths, relativeError, through } = await makeWtcWorld();

describe('the newest tokens', () => {
  test('are coded finer unless asked otherwise', async () => {
    await withCoder(paths.plain, async (coder) => {
      const finer = await through(coder, { ratio: 16 });
      const without = await through(coder, { ratio: 16, window: 0 });
      const last = (restored: Uint8Array): number => relativeError(restored, TOKENS - 128, TOKENS);
      assert.ok(last(finer.restored) < 0.3 * last(without.restored));
      assert.ok(last(finer.restored) > 0);
      assert.equal(relativeError(finer.restored, 4, 256), relativeError(without.restored, 4, 256));
      assert.ok(finer.bytes.length > without.bytes.length);
    });
  });

  test('are coded finer the newer they are where the profile knows recency', async () => {
    await withCoder(paths.steps, async (coder) => {
      const { restored } = await through(coder, { ratio: 16 });
      const error = (first: number, end: number): number => relativeError(restored, TOKENS - first, TOKENS - end);
      assert.ok(error(16, 0) < 0.7 * error(64, 32) && error(64, 32) < 0.7 * error(TOKENS - 4, 256));
    });
  });

  test('are exact on request', async () => {
    await withCoder(paths.plain, async (coder) => {
      const { bytes, restored } = await through(coder, { ratio: 16, windowMode: 'exact', window: 100 });
      assert.equal(relativeError(restored, TOKENS - 100, TOKENS), 0);
      const container = await openContainer(bytes);
      assert.deepEqual(container.header.exactRanges.at(-1), { startToken: TOKENS - 100, endToken: TOKENS });
      await container.close();
    });
  });

  test('alone take the components that finer steps need', async () => {
    await withCoder(paths.weighted, async (coder) => {
      assert.ok(coder.profile.codec === 'wtc');
      const ratio = Math.sqrt((coder.profile.steps[0]?.ratio ?? 1) * (coder.profile.steps.at(-1)?.ratio ?? 1));
      const { bytes } = await through(coder, { ratio });
      const container = await openContainer(bytes);
      const chunkDecoder = createChunkDecoder(container.header, coder.profile);
      const [usual, finer] = ranksInUse(coder.profile, { ratio, window: 128 });
      assert.ok(usual.key < finer.key && usual.value < finer.value);
      // What a product reads is set, whatever the buffer held.
      const pool = { ...floatPool(), take: (length: number) => new Float32Array(length).fill(NaN) };
      for (const chunk of container.chunks.filter(({ startToken }) => startToken > 1)) {
        const stored = await container.readChunk(chunk);
        const { coefficients, rank, leading } = await chunkDecoder.decode(
          [stored],
          { ...chunk, chunks: [chunk] },
          pool,
        );
        const most = Math.max(...(leading ?? []));
        const read = Math.min(rank, Math.ceil(most / TERM_BLOCK) * TERM_BLOCK);
        for (let row = 0; row < coefficients.length; row += rank) {
          assert.ok(coefficients.subarray(row, row + read).every(Number.isFinite));
        }
        const [from, to] = chunk.endToken > TOKENS - 128 ? [usual, finer] : [{ key: 0, value: 0 }, usual];
        const within = most > from[chunk.stream] && most <= to[chunk.stream];
        assert.ok(within, `${chunk.stream} from ${chunk.startToken}: ${most}`);
      }
      await container.close();
    });
  });

  test('leave equal prefixes with equal chunks when there is no window', async () => {
    await withCoder(paths.steps, async (coder) => {
      const chunksOf = async (bytes: Uint8Array): Promise<Uint8Array[]> => {
        const container = await openContainer(bytes);
        const chunks = [];
        for (const chunk of container.chunks.filter(({ endToken }) => endToken <= 513))
          chunks.push(await container.readChunk(chunk));
        await container.close();
        return chunks;
      };
      const { bytes } = await through(coder, { ratio: 16, window: 0 });
      // The very same rows: a shorter prefill would differ in its last bits.
      const model = await openModel(world.modelPath);
      const context = await model.createContext({ contextTokens: TOKENS });
      context.setState(state);
      context.truncate(0, 560);
      const target = memoryTarget();
      await coder.compress(context.getState(), target, { ratio: 16, window: 0, tokens: tokens.subarray(0, 560) });
      model.close();
      assert.equal((await chunksOf(bytes)).length, 4);
      assert.deepEqual(await chunksOf(target.bytes()), await chunksOf(bytes));
    });
  });
});
