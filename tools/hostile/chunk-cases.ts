// Chunks and plans of the paper's codec that cannot be (docs/format/paper-codec.md), in containers whose every checksum
// fits.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import { openContainer } from '../../src/container/reader.ts';
import { memoryTarget } from '../../src/container/target.ts';
import { edited } from '../../test/container-surgery.ts';
import { writeTiny } from '../../test/tiny-container.ts';
import type { TinyContent } from '../../test/tiny-container.ts';
import { writeTinyPaper, writeTinyProfile } from '../../test/tiny-paper.ts';
import { hostileCases } from './cases.ts';

const { cases, add } = hostileCases();
export { cases as chunkCases };

const scratch = await mkdtemp(join(tmpdir(), 'kvtc-hostile-'));
const profile = await writeTinyProfile(join(scratch, 'profile'), 'factors');
const paperTarget = memoryTarget();
await writeTinyPaper(paperTarget, profile, {
  tokenCount: 12,
  sinks: 1,
  window: 1,
  chunkTokens: 10,
  entropy: 'deflate',
  elementTypes: { key: 'f16', value: 'f16' },
  seed: 1,
  firstPosition: 0,
  withTokens: true,
});
await profile.close();
await rm(scratch, { recursive: true });
const container = await openContainer(paperTarget.bytes());
const { header: paperHeader, tokens, positions: paperPositions } = container;
const exact: TinyContent['exact'][number][] = [];
for (const rangeIndex of paperHeader.exactRanges.keys()) {
  for (const stream of ['key', 'value'] as const) {
    exact.push({ stream, rangeIndex, rows: await container.readExactRows(stream, rangeIndex) });
  }
}
const [keyChunk, valueChunk] = await Promise.all(
  container.chunks.map(async (chunk) => ({
    stream: chunk.stream,
    startToken: chunk.startToken,
    endToken: chunk.endToken,
    packedBytes: chunk.packedBytes,
    stored: await container.readChunk(chunk),
  })),
);
if (keyChunk === undefined || valueChunk === undefined) throw new Error('expected two chunks');
const paper: TinyContent = {
  header: paperHeader,
  tokens,
  positions: paperPositions,
  exact,
  chunks: [keyChunk, valueChunk],
};
const paperFile = async (content: Partial<TinyContent>): Promise<Uint8Array> => {
  const target = memoryTarget();
  await writeTiny(target, { ...paper, ...content });
  return target.bytes();
};
const frame = (payload: Uint8Array, flag = 0): Uint8Array =>
  Buffer.concat([Uint8Array.from(new Uint8Array(Uint32Array.of(payload.length + flag).buffer)), payload]);
const withKey = (stored: Uint8Array, packedBytes = keyChunk.packedBytes): Promise<Uint8Array> =>
  paperFile({ chunks: [{ ...keyChunk, stored, packedBytes }, valueChunk] });
const raw = (edit: (v: DataView) => void): Uint8Array => edited(new Uint8Array(keyChunk.packedBytes), edit);
const stored = (edit: (v: DataView) => void): Promise<Uint8Array> => withKey(frame(raw(edit), 0x80000000));
const bad = 'KVTC_CHUNK_MALFORMED';
add('chunk-bomb', bad, await withKey(frame(deflateRawSync(new Uint8Array(1 << 22)))));
add('chunk-not-deflate', bad, await withKey(frame(new Uint8Array(30).fill(0xff))));
add('chunk-frame-cut', bad, await withKey(keyChunk.stored.subarray(0, keyChunk.stored.length - 1)));
add('chunk-frame-longer', bad, await withKey(Buffer.concat([keyChunk.stored, Uint8Array.of(0)])));
add('chunk-no-frame', bad, await withKey(new Uint8Array(0)));
add('chunk-packed-length', bad, await withKey(frame(new Uint8Array(50), 0x80000000), 50));
add('chunk-fp8-nan', bad, await stored((v) => v.setUint8(16 * 10, 0x7f)));
add('chunk-minimum-nan', bad, await stored((v) => v.setUint16(0, 0x7e00, true)));
add('chunk-step-infinite', bad, await stored((v) => v.setUint16(20, 0x7c00, true)));
add('chunk-padding-bits', bad, await stored((v) => v.setUint8(16 * 10 + 30, 0xf0)));
const parameters = (from: string, to: string): Promise<Uint8Array> =>
  paperFile({
    header: {
      ...paperHeader,
      codecParameters: JSON.parse(JSON.stringify(paperHeader.codecParameters).replace(from, to)),
    },
  });
add('plan-overlap', 'KVTC_CONTAINER_MALFORMED', await parameters('"start":5', '"start":4'));
add('plan-past-rank', 'KVTC_CONTAINER_MALFORMED', await parameters('"rank":32', '"rank":16'));
add('plan-rank-ragged', 'KVTC_CONTAINER_MALFORMED', await parameters('"rank":32', '"rank":33'));
add('plan-type-unknown', 'KVTC_CONTAINER_MALFORMED', await parameters('"int4"', '"int3"'));
add('plan-exponent', 'KVTC_CONTAINER_MALFORMED', await parameters('"exponent":-2', '"exponent":-200'));
add('plan-other-length', bad, await parameters('"size":16,"start":16', '"size":15,"start":16'));
add('entropy-unknown', 'KVTC_CODEC_UNKNOWN', await paperFile({ header: { ...paperHeader, entropy: 'huffman' } }));
