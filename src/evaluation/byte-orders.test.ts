import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { tokenPackedBytes } from '../codec/paper/packing.ts';
import { paperCodec } from '../codec/paper/paper-codec.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import { measureByteOrders } from './byte-orders.ts';

const plan: PaperPlan = {
  rank: 96,
  groups: [
    { start: 0, size: 16, type: 'fp8', exponent: 0 },
    { start: 16, size: 16, type: 'int4', exponent: 0 },
    { start: 32, size: 64, type: 'int2', exponent: 0 },
  ],
};

function packed(tokens: number, value: (component: number) => number): Uint8Array {
  const coefficients = Float32Array.from({ length: tokens * plan.rank }, (_, i) => value(i % plan.rank));
  return paperCodec.encodeChunk(coefficients, tokens, plan);
}

test('one token is the same by tokens and by groups', async () => {
  const random = seededRandom(3);
  const bytes = packed(1, () => random.uniform());
  const orders = await measureByteOrders(bytes, 1, plan);
  assert.deepEqual([orders.tokens, orders.packedBytes], [1, tokenPackedBytes(plan)]);
  assert.equal(orders.tokenMajorBytes, orders.groupMajorBytes);
});

test('what repeats from token to token compresses best where it lies together', async () => {
  const random = seededRandom(4);
  // The first and last group repeat, the middle one is noise: by tokens, noise comes between.
  const bytes = packed(400, (component) =>
    component >= 16 && component < 32 ? random.uniform() : Math.sin(component),
  );
  const { packedBytes, tokenMajorBytes, groupMajorBytes, splitBytes } = await measureByteOrders(bytes, 400, plan);
  assert.equal(packedBytes, 400 * tokenPackedBytes(plan));
  assert.ok(groupMajorBytes < tokenMajorBytes, `${groupMajorBytes} by groups, ${tokenMajorBytes} by tokens`);
  assert.ok(splitBytes < tokenMajorBytes && tokenMajorBytes < packedBytes);
});
