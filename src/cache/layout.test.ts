import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isKvtcError } from '../base/errors.ts';
import { layOutTokens } from './layout.ts';

const defaults = { sinks: 4, window: 128, exactRanges: [], chunkTokens: 256 };

test('keeps sinks and window exact and cuts chunks counted from the end of the sinks', () => {
  const { exact, chunks } = layOutTokens(700, defaults);
  assert.deepEqual(exact, [
    { startToken: 0, endToken: 4 },
    { startToken: 572, endToken: 700 },
  ]);
  assert.deepEqual(chunks, [
    { startToken: 4, endToken: 260 },
    { startToken: 260, endToken: 516 },
    { startToken: 516, endToken: 572 },
  ]);
});

test('keeps a sequence no longer than sinks and window exact throughout', () => {
  for (const tokenCount of [1, 4, 131, 132]) {
    const { exact, chunks } = layOutTokens(tokenCount, defaults);
    assert.deepEqual(exact, [{ startToken: 0, endToken: tokenCount }]);
    assert.deepEqual(chunks, []);
  }
});

test('gives equal full chunks to equal prefixes in the windowless mode', () => {
  const short = layOutTokens(4 + 512, { ...defaults, window: 0 }).chunks;
  const long = layOutTokens(4 + 900, { ...defaults, window: 0 }).chunks;
  assert.deepEqual(short, long.slice(0, 2));
});

test('tiles every token exactly once, whatever the exact ranges', () => {
  const range = fc.tuple(fc.nat(400), fc.integer({ min: 1, max: 60 }));
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 400 }),
      fc.nat(10),
      fc.nat(200),
      fc.integer({ min: 1, max: 64 }),
      fc.array(range),
      (tokenCount, sinks, window, chunkTokens, raw) => {
        const exactRanges = raw
          .map(([startToken, size]) => ({ startToken, endToken: Math.min(tokenCount, startToken + size) }))
          .filter((r) => r.startToken < r.endToken);
        const { exact, chunks } = layOutTokens(tokenCount, { sinks, window, exactRanges, chunkTokens });
        const all = [...exact, ...chunks].toSorted((a, b) => a.startToken - b.startToken);
        let at = 0;
        for (const r of all) {
          assert.equal(r.startToken, at);
          assert.ok(r.endToken > r.startToken);
          at = r.endToken;
        }
        assert.equal(at, tokenCount);
        assert.ok(chunks.every((r) => r.endToken - r.startToken <= Math.max(chunkTokens, sinks)));
      },
    ),
  );
});

test('refuses counts and ranges that cannot be', () => {
  const invalid = (error: unknown): boolean => isKvtcError(error, 'KVTC_OPTION_INVALID');
  assert.throws(() => layOutTokens(10, { ...defaults, sinks: -1 }), invalid);
  assert.throws(() => layOutTokens(10, { ...defaults, window: 1.5 }), invalid);
  assert.throws(() => layOutTokens(10, { ...defaults, chunkTokens: 0 }), invalid);
  assert.throws(() => layOutTokens(10, { ...defaults, exactRanges: [{ startToken: 5, endToken: 11 }] }), invalid);
});
