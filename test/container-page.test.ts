import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openContainer, verifyContainer } from '../src/container/reader.ts';
import { DEFAULT_LIMITS } from '../src/container/format.ts';
import { readTiny, tinyBytes } from './tiny-container.ts';

const page = await readFile(join(import.meta.dirname, '..', 'docs', 'format', 'container.md'), 'utf8');

function block(language: string): string[] {
  const found = new RegExp(`\`\`\`${language}\n([^\`]*)\`\`\``).exec(page)?.[1];
  assert.ok(found, `the page has no ${language} block`);
  return found.trimEnd().split('\n');
}

test('the whole file shown on the format page reads as the page says', async () => {
  const file = new Uint8Array(1292);
  for (const line of block('hex')) {
    const [, offset, hex] = /^([0-9a-f]{4}): ([0-9a-f ]*)/.exec(line) ?? [];
    assert.ok(offset && hex, line);
    file.set(Buffer.from(hex.replaceAll(' ', ''), 'hex'), Number.parseInt(offset, 16));
  }
  file.set(new TextEncoder().encode(block('json').join('')), 0x100);
  await verifyContainer(file);
  const container = await openContainer(file);
  assert.deepEqual([...(container.tokens ?? [])], [1, 15, 4]);
  assert.deepEqual([...container.positions], [0, 1, 2]);
  const content = await readTiny(container);
  assert.deepEqual(
    content.chunks.map(({ stream, stored }) => [stream, Buffer.from(stored).toString('hex')]),
    [
      ['key', 'aabbcc'],
      ['value', 'ddee'],
    ],
  );
  assert.deepEqual(await tinyBytes(content), file);
});

test('the limits on the format page are the defaults of the reader', () => {
  const limitOf = (name: string): number => {
    const text = new RegExp(`^\\| ${name} \\| ([0-9,]+)( [MG]iB)? \\|$`, 'm').exec(page);
    assert.ok(text?.[1], name);
    const unit = { ' MiB': 2 ** 20, ' GiB': 2 ** 30 }[text[2] ?? ''] ?? 1;
    return Number(text[1].replaceAll(',', '')) * unit;
  };
  assert.deepEqual(
    {
      sections: limitOf('sections'),
      headerBytes: limitOf('header'),
      tokens: limitOf('tokens'),
      chunks: limitOf('chunks'),
      chunkTokens: limitOf('chunkTokens'),
      storedChunkBytes: limitOf('stored bytes of a chunk, or of an ancillary section'),
      packedChunkBytes: limitOf('packed bytes of a chunk'),
      exactLayerBytes: limitOf('exact rows of one layer in one range'),
    },
    DEFAULT_LIMITS,
  );
});
