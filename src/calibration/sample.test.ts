import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { sampleDocuments } from './sample.ts';

// One token a character, so that token counts can be read off the texts.
const tokenize = (text: string): Int32Array => Int32Array.from(text, (c) => c.codePointAt(0) ?? 0);
const groups = [
  { name: 'prose', texts: Array.from({ length: 8 }, (_, i) => ({ source: `p${i}`, text: String(i).repeat(198) })) },
  {
    name: 'code',
    texts: Array.from({ length: 8 }, (_, i) => ({ source: `c${i}`, text: 'abcdefgh'.charAt(i).repeat(298) })),
  },
];

test('cuts alternating documents of equal share from shuffled texts, the same ones for the same seed', () => {
  const options = { tokens: 1600, documentTokens: 400, seed: 7, tokenize };
  const documents = sampleDocuments(groups, options);
  assert.deepEqual(
    documents.map((d) => [d.group, d.tokens.length]),
    [
      ['prose', 400],
      ['code', 400],
      ['prose', 400],
      ['code', 400],
    ],
  );
  assert.deepEqual(sampleDocuments(groups, options), documents);
  assert.notDeepEqual(sampleDocuments(groups, { ...options, seed: 8 })[0]?.sha256, documents[0]?.sha256);
});

test('joins texts in order, names every source and never repeats a token', () => {
  const [first, second] = sampleDocuments([groups[0] as (typeof groups)[0]], {
    tokens: 600,
    documentTokens: 300,
    seed: 1,
    tokenize,
  });
  const sources = `${first?.source} + ${second?.source}`.split(' + ');
  assert.equal(first?.source.split(' + ').length, 2);
  assert.equal(first?.source.split(' + ').at(-1), second?.source.split(' + ')[0]);
  assert.equal(new Set(sources).size, 3);
});

test('takes one document of every text before a second of any, and every token in the end', () => {
  const group = groups[1] as (typeof groups)[1];
  const sample = (tokens: number) => sampleDocuments([group], { tokens, documentTokens: 100, seed: 3, tokenize });
  const firsts = sample(800);
  assert.equal(firsts.length, 8);
  assert.equal(new Set(firsts.map(({ source }) => source)).size, 8);
  const all = sample(2400); // 8 texts of 300 tokens, each ending with two line breaks
  assert.deepEqual(all.slice(0, 8), firsts);
  const counts = new Map<number, number>();
  for (const { tokens } of all) for (const token of tokens) counts.set(token, (counts.get(token) ?? 0) + 1);
  assert.deepEqual(
    [...counts].toSorted(([a], [b]) => a - b),
    [[10, 16], ...Array.from({ length: 8 }, (_, i) => [97 + i, 298])],
  );
});

test('shortens the last document of a share and refuses texts that are far too short', () => {
  const lengths = sampleDocuments(groups, { tokens: 1000, documentTokens: 400, seed: 7, tokenize }).map(
    (d) => d.tokens.length,
  );
  assert.deepEqual(lengths, [400, 400, 100, 100]);
  assert.throws(
    () => sampleDocuments(groups, { tokens: 1e6, documentTokens: 400, seed: 7, tokenize }),
    (error) => isKvtcError(error, 'KVTC_CALIBRATION_TEXT_SHORT'),
  );
});
