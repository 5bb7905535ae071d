import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { cutDocuments } from './documents.ts';

const tokenize = (text: string): Int32Array => Int32Array.from(text, (c) => c.charCodeAt(0));
const read = (tokens: Int32Array): string => String.fromCharCode(...tokens);

describe('cutDocuments', () => {
  const texts = [
    { source: 'a', kind: 'prose', text: 'abcde' },
    { source: 'x', kind: 'code', text: 'stuvwxyz' },
    { source: 'b', kind: 'prose', text: 'fghij' },
  ];

  it('joins texts of a kind, cuts them, and takes kinds in turn', async () => {
    const documents = await cutDocuments(texts, { documentTokens: 4, documents: 9, tokenize });
    assert.deepEqual(
      documents.map(({ kind, source, tokens }) => [kind, source, read(tokens)]),
      [
        ['prose', 'a', 'abcd'],
        ['code', 'x', 'stuv'],
        ['prose', 'a + b', 'e\n\nf'],
        ['code', 'x', 'wxyz'],
        ['prose', 'b', 'ghij'],
      ],
    );
    assert.equal(new Set(documents.map(({ sha256 }) => sha256)).size, 5);
    assert.match(documents[0]?.sha256 ?? '', /^[0-9a-f]{64}$/);
  });

  it('tokenises no more text than the documents need', async () => {
    const seen: string[] = [];
    const spy = (text: string): Int32Array => {
      seen.push(text);
      return tokenize(text);
    };
    const documents = await cutDocuments(texts, { documentTokens: 4, documents: 2, tokenize: spy });
    assert.equal(documents.length, 2);
    assert.deepEqual(seen, ['abcde\n\n', 'stuvwxyz\n\n']);
  });

  it('refuses texts too short for one document, and counts below one', async () => {
    await assert.rejects(cutDocuments(texts, { documentTokens: 400, documents: 1, tokenize }), (error) =>
      isKvtcError(error, 'KVTC_PROMPT_EMPTY'),
    );
    await assert.rejects(cutDocuments([], { documentTokens: 4, documents: 1, tokenize }), (error) =>
      isKvtcError(error, 'KVTC_PROMPT_EMPTY'),
    );
    for (const bad of [{ documentTokens: 0 }, { documents: 0 }, { documents: 1.5 }]) {
      await assert.rejects(cutDocuments(texts, { documentTokens: 4, documents: 1, tokenize, ...bad }), (error) =>
        isKvtcError(error, 'KVTC_OPTION_INVALID'),
      );
    }
  });
});
