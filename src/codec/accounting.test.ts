import assert from 'node:assert/strict';
import { test } from 'node:test';
import { containerRatios, effectiveRatio, paperRatio, ratio, windowTokens } from './accounting.ts';

const near = (got: number, expected: number): void => assert.ok(Math.abs(got - expected) < 0.005, `${got}`);

/** The worked example of docs/accounting.md. */
const example = {
  valuesPerToken: 11_520,
  tokenCount: 3072,
  sinks: 4,
  exactRanges: [
    { startToken: 0, endToken: 4 },
    { startToken: 2944, endToken: 3072 },
  ],
  parts: [
    { kind: 'header', byteLength: 33_576 },
    { kind: 'exact-rows', byteLength: 92_160 },
    { kind: 'exact-rows', byteLength: 2_949_120 },
    { kind: 'chunk', byteLength: 1_728_041 },
    { kind: 'chunk', byteLength: 1_729_200 },
  ],
  rawBytes: 70_778_880,
  byteLength: 6_532_097,
};

test("the page's example comes out as the page says", () => {
  assert.equal(
    example.parts.reduce((sum, part) => sum + part.byteLength, 0),
    example.byteLength,
  );
  const { paperRatio: paper, effectiveRatio: effective } = containerRatios(example);
  near(paper, 19.11);
  near(effective, 10.84);
});

test('the paper ratio leaves the window out and counts sinks at 16 bit', () => {
  const counts = { valuesPerToken: 100, tokenCount: 1000, windowTokens: 100, sinkTokens: 10, chunkBytes: 8000 };
  assert.equal(paperRatio(counts), (200 * 900) / (8000 + 200 * 10));
  assert.equal(paperRatio({ ...counts, windowTokens: 0, sinkTokens: 0 }), (200 * 1000) / 8000);
});

test('exact ranges in the middle are counted like sinks', () => {
  const middle = [
    ...example.exactRanges.slice(0, 1),
    { startToken: 100, endToken: 110 },
    ...example.exactRanges.slice(1),
  ];
  const { paperRatio: paper } = containerRatios({ ...example, exactRanges: middle });
  assert.equal(paper, (23_040 * 2944) / (3_457_241 + 14 * 23_040));
});

test('the window is the exact range at the end, without the sinks it may contain', () => {
  assert.equal(windowTokens(3072, 4, example.exactRanges), 128);
  assert.equal(windowTokens(100, 4, [{ startToken: 0, endToken: 100 }]), 96);
  assert.equal(windowTokens(3, 4, [{ startToken: 0, endToken: 3 }]), 0);
  assert.equal(windowTokens(100, 4, [{ startToken: 0, endToken: 4 }]), 0, 'windowless');
  assert.equal(windowTokens(100, 0, []), 0);
});

test('a cache that is all sinks and window is neither shrunk nor grown by the paper ratio', () => {
  const all = { ...example, tokenCount: 100, exactRanges: [{ startToken: 0, endToken: 100 }], parts: [] };
  assert.equal(containerRatios(all).paperRatio, 1);
  assert.equal(containerRatios({ ...all, sinks: 0 }).paperRatio, 1);
});

test('no original and no stored bytes make 1; ratios are plain quotients else', () => {
  assert.equal(ratio(0, 0), 1);
  assert.equal(ratio(30, 10), 3);
  assert.equal(effectiveRatio(10, 40), 0.25);
});
