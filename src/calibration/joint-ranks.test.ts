import assert from 'node:assert/strict';
import { test } from 'node:test';
import { jointRanks } from './joint-ranks.ts';

const falling = (count: number, first: number, fall: number): Int16Array =>
  Int16Array.from({ length: count }, (_, i) => first - fall * i);

test('the stream whose components deviate more gets more of them', () => {
  // Equal down to the 64th component of keys and the 128th of values.
  assert.deepEqual(jointRanks(falling(256, 0, 8), falling(256, 0, 4), 0, 192), { key: 64, value: 128 });
  // Values' steps an octave coarser: 256 units, 64 components of theirs.
  assert.deepEqual(jointRanks(falling(256, 0, 8), falling(256, 0, 4), 256, 128), { key: 64, value: 64 });
});

test('a stream has no more than it has and no less than one step', () => {
  assert.deepEqual(jointRanks(falling(32, 0, 1), falling(256, 0, 1), 0, 512), { key: 32, value: 256 });
  assert.deepEqual(jointRanks(falling(64, 10_000, 1), falling(64, -10_000, 1), 0, 64), { key: 64, value: 16 });
});
