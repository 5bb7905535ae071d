// What the codec wtc does with the oldest tokens, on tiny models: the first exact, the others at the finest step, or all exact.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isKvtcError } from '../src/base/errors.ts';
import { openContainer } from '../src/container/reader.ts';
import { makeWtcWorld, withCoder } from './wtc-world.ts';

const { paths, relativeError, through } = await makeWtcWorld();

async function firstExact(bytes: Uint8Array): Promise<unknown> {
  const container = await openContainer(bytes);
  try {
    return container.header.exactRanges[0];
  } finally {
    await container.close();
  }
}

describe('the oldest tokens', () => {
  for (const name of ['plain', 'steps'] as const) {
    test(`are exact, or coded much finer than others: profile ${name}`, async () => {
      await withCoder(paths[name], async (coder) => {
        const usual = await through(coder, { ratio: 16 });
        assert.deepEqual(await firstExact(usual.bytes), { startToken: 0, endToken: 1 });
        assert.equal(relativeError(usual.restored, 0, 1), 0);
        const [others, further] = [relativeError(usual.restored, 1, 4), relativeError(usual.restored, 4, 256)];
        assert.ok(others > 0 && others < 0.3 * further, `${others}, ${further}`);

        const exact = await through(coder, { ratio: 16, sinkMode: 'exact' });
        assert.deepEqual(await firstExact(exact.bytes), { startToken: 0, endToken: 4 });
        assert.equal(relativeError(exact.restored, 0, 4), 0);
        assert.ok(exact.bytes.length > usual.bytes.length);

        const none = await through(coder, { ratio: 16, sinks: 0, window: 0 });
        assert.equal(await firstExact(none.bytes), undefined);
        assert.ok(relativeError(none.restored, 1, 4) > 2 * others);
      });
    });
  }

  test('a number that is none is refused', async () => {
    await withCoder(paths.plain, async (coder) => {
      for (const sinks of [-1, 0.5]) {
        await assert.rejects(through(coder, { ratio: 16, sinks }), (error) =>
          isKvtcError(error, 'KVTC_OPTION_INVALID'),
        );
      }
    });
  });
});
