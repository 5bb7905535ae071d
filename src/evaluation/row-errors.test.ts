// Row errors on states of a tiny model: nothing where nothing changed, and exactly what was changed where it was.

import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import type { TinyWorld } from '../../test/tiny-world.ts';
import { makeTinyWorld, prefilledState } from '../../test/tiny-world.ts';
import { isKvtcError } from '../base/errors.ts';
import { parseState } from '../engines/llama/state.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { openProfile } from '../profile/open-profile.ts';
import { eachLayerBytes } from './treatment.ts';
import { measureRowErrors } from './row-errors.ts';

const TOKENS = 300;

describe('measureRowErrors', () => {
  let world: TinyWorld;
  let state: Uint8Array;
  before(async () => {
    world = await makeTinyWorld('llama');
    ({ state } = await prefilledState(world.modelPath, TOKENS));
  });
  after(() => rm(world.directory, { recursive: true, force: true }));

  /** Compares the state with a changed copy of itself; tokens up to 10 are not coded. */
  async function compare(change: (copy: Uint8Array) => void) {
    const profile = await openProfile(world.profilePath);
    const backend = openGgmlBackend({ threads: 1 });
    try {
      const copy = state.slice();
      change(copy);
      const [exact, restored] = [parseState(state), parseState(copy)];
      return await measureRowErrors({ profile, backend, exact, restored, coded: (token) => token >= 10 });
    } finally {
      backend.close();
      await profile.close();
    }
  }

  it('finds none between a state and itself', async () => {
    const errors = await compare(() => undefined);
    for (const stream of [errors.key, errors.value]) {
      assert.equal(stream.total, 0);
      assert.ok(stream.energyPerToken > 0);
      assert.deepEqual([...new Set(stream.byHead.flat())], [0]);
      assert.deepEqual([...new Set(stream.byPosition.map(({ error }) => error))], [0]);
      assert.deepEqual([stream.byPosition[0]?.startToken, stream.byPosition.at(-1)?.endToken], [0, TOKENS]);
      for (const [i, { startToken }] of stream.byPosition.entries()) {
        if (i > 0) assert.equal(startToken, stream.byPosition[i - 1]?.endToken);
      }
    }
  });

  it('finds a change of one head, one layer and one stretch of tokens there and nowhere else', async () => {
    const layer = 1;
    const head = 1;
    const changed = { startToken: 100, endToken: 120 };
    const errors = await compare((copy) => {
      const view = parseState(copy);
      let at = 0;
      eachLayerBytes(view, 'value', (bytes) => {
        if (at++ !== layer) return;
        const halves = new Uint16Array(bytes.buffer);
        const width = halves.length / TOKENS;
        const dims = width / 2;
        for (let token = changed.startToken; token < changed.endToken; token++) {
          halves.fill(0, token * width + head * dims, token * width + (head + 1) * dims);
        }
      });
    });
    assert.equal(errors.key.total, 0);
    const { byHead, byPosition, total } = errors.value;
    for (const [l, heads] of byHead.entries()) {
      for (const [h, error] of heads.entries()) assert.equal(error > 0, l === layer && h === head, `${l} ${h}`);
    }
    for (const { startToken, endToken, error } of byPosition) {
      assert.equal(error > 0, startToken < changed.endToken && endToken > changed.startToken, `${startToken}`);
    }
    assert.ok(total > 0 && total < Math.max(...byHead.flat()));
  });

  it('leaves exact tokens out of totals, but not out of positions', async () => {
    const errors = await compare((copy) => {
      eachLayerBytes(parseState(copy), 'value', (bytes) => bytes.fill(0, 0, (bytes.length / TOKENS) * 4));
    });
    assert.equal(errors.value.total, 0);
    assert.ok((errors.value.byPosition[0]?.error ?? 0) > 0);
  });

  it('refuses states of different lengths', async () => {
    const profile = await openProfile(world.profilePath);
    const backend = openGgmlBackend({ threads: 1 });
    const { state: shorter } = await prefilledState(world.modelPath, 20);
    await assert.rejects(
      measureRowErrors({
        profile,
        backend,
        exact: parseState(state),
        restored: parseState(shorter),
        coded: () => true,
      }),
      (error) => isKvtcError(error, 'KVTC_STATE_MISMATCH'),
    );
    backend.close();
    await profile.close();
  });
});
