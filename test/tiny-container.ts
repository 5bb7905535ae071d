// Small containers with opaque chunk bytes, from a seed: what the container's own tests read, break and mutate.

import { elementBytes, layerWidth, STREAMS } from '../src/base/geometry.ts';
import type { CacheGeometry, StreamKind, TokenRange } from '../src/base/geometry.ts';
import type { Random } from '../src/base/random.ts';
import { seededRandom } from '../src/base/random.ts';
import { memoryTarget } from '../src/container/target.ts';
import type { Container, ContainerHeader, ContainerTarget } from '../src/container/types.ts';
import { createContainerWriter } from '../src/container/writer.ts';

const geometry: CacheGeometry = { layers: 2, kvHeads: 1, keyHeadDim: 4, valueHeadDim: 2 };

export const TINY_HEADER: ContainerHeader = {
  producer: 'kvtc test',
  codec: 'opaque',
  codecParameters: { note: 'größe', step: 1e-7 },
  entropy: 'none',
  profileId: 'ab'.repeat(32),
  model: {
    architecture: 'llama',
    name: 'tiny',
    geometry,
    rope: {
      pairing: 'half-split',
      dims: 4,
      frequencyBase: 10000,
      frequencyScale: 1,
      extFactor: 0,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 2048,
      frequencyFactors: [1, 2.5],
    },
    fingerprint: '0123456789abcdef'.repeat(4),
  },
  tokenCount: 9,
  chunkTokens: 3,
  elementTypes: { key: 'f16', value: 'f32' },
  exactRanges: [
    { startToken: 0, endToken: 1 },
    { startToken: 6, endToken: 7 },
  ],
  engine: 'none',
};

/** Everything a container carries, as given to the writer or read back. */
export interface TinyContent {
  readonly header: ContainerHeader;
  readonly tokens: Int32Array | null;
  readonly positions: Int32Array;
  readonly exact: readonly { readonly stream: StreamKind; readonly rangeIndex: number; readonly rows: Uint8Array }[];
  readonly chunks: readonly (TokenRange & {
    readonly stream: StreamKind;
    readonly packedBytes: number;
    readonly stored: Uint8Array;
  })[];
}

/** Random content that fits `header`. Chunks follow chunkTokens from the start of every gap between exact ranges. */
export function tinyContent(header: ContainerHeader = TINY_HEADER, seed = 1, withTokens = true): TinyContent {
  const random = seededRandom(seed);
  const exact = header.exactRanges.flatMap((range, rangeIndex) =>
    STREAMS.map((stream) => {
      const rowBytes = elementBytes(header.elementTypes[stream], layerWidth(header.model.geometry, stream));
      const byteLength = header.model.geometry.layers * (range.endToken - range.startToken) * rowBytes;
      return { stream, rangeIndex, rows: randomBytes(random, byteLength) };
    }),
  );
  const chunks: TinyContent['chunks'][number][] = [];
  let from = 0;
  for (const range of [...header.exactRanges, { startToken: header.tokenCount, endToken: header.tokenCount }]) {
    for (let startToken = from; startToken < range.startToken; startToken += header.chunkTokens) {
      const endToken = Math.min(range.startToken, startToken + header.chunkTokens);
      for (const stream of STREAMS) {
        const stored = randomBytes(random, random.below(9));
        chunks.push({ stream, startToken, endToken, packedBytes: stored.length * 2, stored });
      }
    }
    from = range.endToken;
  }
  const jump = random.below(header.tokenCount);
  return {
    header,
    tokens: withTokens ? Int32Array.from({ length: header.tokenCount }, () => random.below(50000)) : null,
    positions: Int32Array.from({ length: header.tokenCount }, (_, token) => (token < jump ? token : token + 7)),
    exact,
    chunks,
  };
}

function randomBytes(random: Random, byteLength: number): Uint8Array {
  return Uint8Array.from({ length: byteLength }, () => random.below(256));
}

export async function writeTiny(target: string | ContainerTarget, content: TinyContent): Promise<void> {
  const writer = createContainerWriter(target, content.header);
  try {
    for (const { stream, rangeIndex, rows } of content.exact) await writer.writeExactRows(stream, rangeIndex, rows);
    for (const { stored, ...chunk } of content.chunks) await writer.writeChunk(chunk, stored);
    if (content.tokens !== null) writer.writeTokens(content.tokens);
    writer.writePositions(content.positions);
    await writer.finish();
  } finally {
    await writer.abort();
  }
}

export async function tinyBytes(content: TinyContent = tinyContent()): Promise<Uint8Array> {
  const target = memoryTarget();
  await writeTiny(target, content);
  return target.bytes();
}

/** Reads everything back, in the shape it was given to the writer. */
export async function readTiny(container: Container): Promise<TinyContent> {
  const exact = [];
  for (const rangeIndex of container.header.exactRanges.keys()) {
    for (const stream of STREAMS) {
      exact.push({ stream, rangeIndex, rows: await container.readExactRows(stream, rangeIndex) });
    }
  }
  const chunks = [];
  for (const chunk of container.chunks) {
    const { stream, startToken, endToken, packedBytes } = chunk;
    chunks.push({ stream, startToken, endToken, packedBytes, stored: await container.readChunk(chunk) });
  }
  const { header, tokens, positions } = container;
  return { header, tokens, positions, exact, chunks };
}
