import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { mapInOrder } from './pipeline.ts';

test('hands results on in item order with bounded concurrency', async () => {
  let running = 0;
  let most = 0;
  const seen: number[] = [];
  await mapInOrder(
    [5, 1, 4, 2, 3, 0],
    3,
    async (delayMs) => {
      most = Math.max(most, ++running);
      await sleep(delayMs);
      running--;
      return delayMs * 10;
    },
    (result) => {
      seen.push(result);
    },
  );
  assert.deepEqual(seen, [50, 10, 40, 20, 30, 0]);
  assert.equal(most, 3);
});

test('rethrows the first failure after the running jobs have ended', async () => {
  const ended: number[] = [];
  await assert.rejects(
    mapInOrder(
      [0, 1, 2, 3, 4, 5],
      2,
      async (item) => {
        await sleep(item === 1 ? 1 : 5);
        ended.push(item);
        if (item === 1) throw new Error('job 1');
        return item;
      },
      () => undefined,
    ),
    /job 1/,
  );
  assert.ok(!ended.includes(5));
  assert.ok(ended.includes(2));
});
