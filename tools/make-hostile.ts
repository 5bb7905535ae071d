// Writes test/hostile: broken .kvtc files, each with the error code it must give. Every case breaks one rule of
// docs/format/container.md or docs/format/paper-codec.md; checksums fit unless they are the case.

import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import type { ErrorCode } from '../src/base/errors.ts';
import { PREAMBLE_BYTES, SECTION_ENTRY_BYTES, SectionKind } from '../src/container/format.ts';
import { openContainer } from '../src/container/reader.ts';
import { memoryTarget } from '../src/container/target.ts';
import { edited, editHead, joinSections, replaceSection, splitSections } from '../test/container-surgery.ts';
import { tinyBytes, writeTiny } from '../test/tiny-container.ts';
import type { TinyContent } from '../test/tiny-container.ts';
import { writeTinyPaper, writeTinyProfile } from '../test/tiny-paper.ts';

const folder = join(import.meta.dirname, '..', 'test', 'hostile');
const cases = new Map<string, { code: ErrorCode; bytes: Uint8Array }>();
const add = (name: string, code: ErrorCode, bytes: Uint8Array): void => {
  if (cases.has(name)) throw new Error(`two cases are called ${name}`);
  cases.set(name, { code, bytes });
};

const good = await tinyBytes();
const { length } = good;
const sectionCount = splitSections(good).length;
const entryAt = (index: number): number => PREAMBLE_BYTES + index * SECTION_ENTRY_BYTES;
const flip = (offset: number, bit = 1): Uint8Array =>
  edited(good, (view) => view.setUint8(offset, view.getUint8(offset) ^ bit));

// Preamble
const text = (from: string, to: string): Uint8Array =>
  Uint8Array.from(Buffer.from(Buffer.from(good).toString('latin1').replaceAll(from, to), 'latin1'));
add('magic-wrong', 'KVTC_CONTAINER_MAGIC', flip(1));
add('magic-lf-became-crlf', 'KVTC_CONTAINER_MAGIC', text('\n', '\r\n'));
add('magic-crlf-became-lf', 'KVTC_CONTAINER_MAGIC', text('\r\n', '\n'));
add(
  'magic-eighth-bit-lost',
  'KVTC_CONTAINER_MAGIC',
  good.map((byte) => byte & 0x7f),
);
add('empty', 'KVTC_CONTAINER_MAGIC', new Uint8Array(0));
add(
  'version-future-major',
  'KVTC_CONTAINER_VERSION',
  editHead(good, (view) => view.setUint16(8, 2, true)),
);
add(
  'version-zero',
  'KVTC_CONTAINER_VERSION',
  editHead(good, (view) => view.setUint16(8, 0, true)),
);
add(
  'feature-required',
  'KVTC_CONTAINER_RESERVED',
  editHead(good, (view) => view.setUint32(12, 1 << 7, true)),
);
for (const at of [32, 47, 59]) {
  add(
    `reserved-preamble-byte-${at}`,
    'KVTC_CONTAINER_RESERVED',
    editHead(good, (view) => view.setUint8(at, 1)),
  );
}
add(
  'sections-too-many',
  'KVTC_CONTAINER_LIMIT',
  edited(good, (view) => view.setUint32(20, 0xffffffff, true)),
);
add(
  'section-table-past-file',
  'KVTC_CONTAINER_TRUNCATED',
  edited(good.subarray(0, 200), (view) => {
    view.setUint32(20, 30, true);
    view.setBigUint64(24, 200n, true);
  }),
);
add(
  'length-past-file',
  'KVTC_CONTAINER_TRUNCATED',
  editHead(good, (view) => view.setBigUint64(24, BigInt(length + 1), true)),
);
add(
  'length-beyond-all',
  'KVTC_CONTAINER_TRUNCATED',
  editHead(good, (view) => view.setBigUint64(24, 2n ** 64n - 1n, true)),
);
add(
  'length-short',
  'KVTC_CONTAINER_MALFORMED',
  editHead(good, (view) => view.setBigUint64(24, BigInt(length - 1), true)),
);
add('bytes-appended', 'KVTC_CONTAINER_MALFORMED', Uint8Array.from([...good, 0]));
add('checksum-head', 'KVTC_CONTAINER_CHECKSUM', flip(61));
add('checksum-minor-version', 'KVTC_CONTAINER_CHECKSUM', flip(10));
add('checksum-ignorable-feature', 'KVTC_CONTAINER_CHECKSUM', flip(16));

// Truncation at every section edge
add('truncated-after-magic', 'KVTC_CONTAINER_TRUNCATED', good.slice(0, 8));
add('truncated-in-preamble', 'KVTC_CONTAINER_TRUNCATED', good.slice(0, 63));
add('truncated-after-preamble', 'KVTC_CONTAINER_TRUNCATED', good.slice(0, 64));
add('truncated-after-table', 'KVTC_CONTAINER_TRUNCATED', good.slice(0, entryAt(sectionCount)));
const view = new DataView(good.buffer, good.byteOffset, good.byteLength);
for (let index = 0; index < sectionCount; index++) {
  const start = Number(view.getBigUint64(entryAt(index) + 8, true));
  const end = start + Number(view.getBigUint64(entryAt(index) + 16, true));
  add(`truncated-before-section-${index + 1}`, 'KVTC_CONTAINER_TRUNCATED', good.slice(0, start));
  if (end < length) add(`truncated-after-section-${index + 1}`, 'KVTC_CONTAINER_TRUNCATED', good.slice(0, end));
  add(`checksum-section-${index + 1}`, 'KVTC_CONTAINER_CHECKSUM', flip(end - 1, 0x80));
  add(
    `checksum-field-section-${index + 1}`,
    'KVTC_CONTAINER_CHECKSUM',
    editHead(good, (head) => head.setUint8(entryAt(index) + 4, head.getUint8(entryAt(index) + 4) ^ 1)),
  );
}

// Section table
const table = (edit: (view: DataView) => void): Uint8Array => editHead(good, edit);
const offsetOf = (index: number): bigint => view.getBigUint64(entryAt(index) + 8, true);
add(
  'section-overlaps',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(2) + 8, offsetOf(1), true)),
);
add(
  'section-not-aligned',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(3) + 8, offsetOf(3) + 1n, true)),
);
add(
  'section-leaves-gap',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(3) + 8, offsetOf(3) + 64n, true)),
);
add(
  'section-past-file',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(6) + 16, 4096n, true)),
);
add(
  'section-length-huge',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(0) + 16, 2n ** 64n - 1n, true)),
);
add(
  'section-last-too-short',
  'KVTC_CONTAINER_MALFORMED',
  table((v) => v.setBigUint64(entryAt(6) + 16, 35n, true)),
);
const sections = splitSections(good);
const [header, exactRows, ...others] = sections as [(typeof sections)[0], (typeof sections)[0], ...typeof sections];
add('section-duplicate', 'KVTC_CONTAINER_MALFORMED', joinSections([header, header, exactRows, ...others]));
add('section-order', 'KVTC_CONTAINER_MALFORMED', joinSections([exactRows, header, ...others]));
add(
  'section-kind-zero',
  'KVTC_CONTAINER_MALFORMED',
  joinSections([{ kind: 0, bytes: new Uint8Array(1) }, ...sections]),
);
add(
  'section-kind-unknown',
  'KVTC_CONTAINER_RESERVED',
  joinSections([...sections, { kind: 8, bytes: new Uint8Array(1) }]),
);
for (const { kind } of sections.slice(0, 6)) {
  add(`section-${kind}-missing`, 'KVTC_CONTAINER_MALFORMED', joinSections(sections.filter((s) => s.kind !== kind)));
}
add('no-sections', 'KVTC_CONTAINER_MALFORMED', joinSections([]));
for (let index = 0; index < sectionCount; index++) {
  const paddingAt = Number(offsetOf(index)) - 1;
  if (paddingAt >= entryAt(sectionCount) && good[paddingAt] === 0) {
    add(`padding-before-section-${index + 1}`, 'KVTC_CONTAINER_RESERVED', flip(paddingAt));
  }
}

// Header
const headerText = new TextDecoder().decode(header.bytes);
const withHeader = (change: (text: string) => string): Uint8Array => {
  const changed = change(headerText);
  if (changed === headerText) throw new Error('the header did not change');
  return replaceSection(good, SectionKind.header, () => new TextEncoder().encode(changed));
};
const swap = (from: string, to: string) => (source: string) => source.replace(from, () => to);
const headerCases: readonly (readonly [string, string, string])[] = [
  ['nan', '"step":1e-7', '"step":NaN'],
  ['infinity', '"step":1e-7', '"step":Infinity'],
  ['overflowing-number', '"step":1e-7', '"step":1e400'],
  ['negative-zero', '"step":1e-7', '"step":-0'],
  ['number-spelling', '"step":1e-7', '"step":0.0000001'],
  ['white-space', '{', '{ '],
  ['duplicate-member', '"chunkTokens":3,', '"chunkTokens":3,"chunkTokens":3,'],
  ['member-order', '"chunkTokens":3,"codec":"opaque"', '"codec":"opaque","chunkTokens":3'],
  ['escape-spelling', 'größe', 'gr\\u00f6\\u00dfe'],
  ['unknown-member', '"tokenCount":9}', '"tokenCount":9,"zeal":1}'],
  ['missing-member', '"entropy":"none",', ''],
  ['deep', '"step":1e-7', `"step":${'['.repeat(40)}${']'.repeat(40)}`],
  ['token-count-zero', '"tokenCount":9', '"tokenCount":0'],
  ['token-count-fraction', '"tokenCount":9', '"tokenCount":9.5'],
  ['token-count-other', '"tokenCount":9', '"tokenCount":10'],
  ['chunk-tokens-exceeded', '"chunkTokens":3', '"chunkTokens":2'],
  ['element-type', '"key":"f16"', '"key":"f64"'],
  ['element-type-length', '"key":"f16"', '"key":"f32"'],
  ['codec-name', '"codec":"opaque"', '"codec":"Opaque!"'],
  ['profile-id', 'abab', 'ABAB'],
  ['range-empty', '{"endToken":1,"startToken":0}', '{"endToken":1,"startToken":1}'],
  ['range-past-end', '{"endToken":7,"startToken":6}', '{"endToken":10,"startToken":6}'],
  ['ranges-overlap', '{"endToken":7,"startToken":6}', '{"endToken":7,"startToken":0}'],
  ['ranges-touch', '{"endToken":1,"startToken":0}', '{"endToken":6,"startToken":0}'],
  ['rope-dims-odd', '"dims":4', '"dims":3'],
  ['rope-dims-large', '"dims":4', '"dims":6'],
  ['rope-factors', '"frequencyFactors":[1,2.5]', '"frequencyFactors":[1]'],
  ['layers-huge', '"layers":2', '"layers":1000000'],
  ['layers-other', '"layers":2', '"layers":3'],
  ['not-an-object', headerText, '[]'],
  ['not-json', '}', ''],
];
for (const [name, from, to] of headerCases) {
  add(`header-${name}`, 'KVTC_CONTAINER_MALFORMED', withHeader(swap(from, to)));
}
add('header-chunk-tokens-huge', 'KVTC_CONTAINER_LIMIT', withHeader(swap('"chunkTokens":3', '"chunkTokens":16385')));
add('header-token-count-huge', 'KVTC_CONTAINER_LIMIT', withHeader(swap('"tokenCount":9', '"tokenCount":2147483647')));
add(
  'header-rows-huge',
  'KVTC_CONTAINER_LIMIT',
  withHeader((source) =>
    source
      .replace('"keyHeadDim":4,"kvHeads":1', '"keyHeadDim":65536,"kvHeads":65536')
      .replace('"key":"f16"', '"key":"f32"'),
  ),
);
add(
  'header-not-utf8',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.header, (b) => edited(b, (v) => v.setUint8(3, 0xff))),
);
add(
  'header-empty',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.header, () => new Uint8Array(0)),
);

// Chunk index: entries are (start, end, stored, packed, crc, stream, reserved); tokens 1-3, 4-5 and 7-8 are coded
const index = (edit: (v: DataView) => void): Uint8Array =>
  replaceSection(good, SectionKind.chunkIndex, (bytes) => edited(bytes, edit));
add(
  'index-gap',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(24 * 2, 5, true)),
);
add(
  'index-overlap',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(24 * 2, 3, true)),
);
add(
  'index-empty-chunk',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(4, 1, true)),
);
add(
  'index-backward-chunk',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(4, 0, true)),
);
add(
  'index-into-exact-range',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(24 * 2 + 4, 7, true)),
);
add(
  'index-past-end',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(24 * 5 + 4, 10, true)),
);
add(
  'index-end-huge',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(24 * 5 + 4, 0xffffffff, true)),
);
add(
  'index-stream-order',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => (v.setUint8(20, 1), v.setUint8(44, 0))),
);
add(
  'index-same-stream-twice',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint8(44, 0)),
);
add(
  'index-stream-unknown',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint8(20, 2)),
);
add(
  'index-reserved-byte',
  'KVTC_CONTAINER_RESERVED',
  index((v) => v.setUint8(23, 1)),
);
add(
  'index-packed-bomb',
  'KVTC_CONTAINER_LIMIT',
  index((v) => v.setUint32(12, 0xffffffff, true)),
);
add(
  'index-stored-huge',
  'KVTC_CONTAINER_LIMIT',
  index((v) => v.setUint32(8, 0xffffffff, true)),
);
add(
  'index-stored-sum',
  'KVTC_CONTAINER_MALFORMED',
  index((v) => v.setUint32(8, v.getUint32(8, true) + 1, true)),
);
add(
  'index-chunk-checksum',
  'KVTC_CONTAINER_CHECKSUM',
  index((v) => v.setUint32(16, 1, true)),
);
const cutIndex = (by: number): Uint8Array =>
  replaceSection(good, SectionKind.chunkIndex, (bytes) => bytes.slice(0, bytes.length - by));
add('index-length', 'KVTC_CONTAINER_MALFORMED', cutIndex(1));
add('index-chunk-missing', 'KVTC_CONTAINER_MALFORMED', cutIndex(24));
add(
  'index-empty',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.chunkIndex, () => new Uint8Array(0)),
);
add(
  'payload-longer',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.payload, (b) => Uint8Array.from([...b, 0])),
);

// Exact rows, positions, token ids
const kinds = SectionKind;
const cut = (kind: number, by = 1): Uint8Array =>
  replaceSection(good, kind, (bytes) => bytes.slice(0, bytes.length - by));
add('exact-rows-shorter', 'KVTC_CONTAINER_MALFORMED', cut(kinds.exactRows));
add('exact-checksums-fewer', 'KVTC_CONTAINER_MALFORMED', cut(kinds.exactChecksums, 4));
add(
  'exact-layer-checksum',
  'KVTC_CONTAINER_CHECKSUM',
  replaceSection(good, kinds.exactChecksums, (b) => edited(b, (v) => v.setUint8(5, v.getUint8(5) ^ 4))),
);
const positions = (...runs: number[]): Uint8Array =>
  replaceSection(good, kinds.positions, () => new Uint8Array(Uint32Array.from(runs).buffer));
add('positions-run-split', 'KVTC_CONTAINER_MALFORMED', positions(0, 4, 4, 5));
add('positions-run-empty', 'KVTC_CONTAINER_MALFORMED', positions(0, 9, 100, 0));
add('positions-too-few', 'KVTC_CONTAINER_MALFORMED', positions(0, 8));
add('positions-too-many', 'KVTC_CONTAINER_MALFORMED', positions(0, 10));
add('positions-count-huge', 'KVTC_CONTAINER_MALFORMED', positions(0, 0xffffffff));
add('positions-beyond-i32', 'KVTC_CONTAINER_MALFORMED', positions(0x7ffffffb, 9));
add('positions-none', 'KVTC_CONTAINER_MALFORMED', positions());
add('positions-length', 'KVTC_CONTAINER_MALFORMED', cut(kinds.positions));
add('tokens-fewer', 'KVTC_CONTAINER_MALFORMED', cut(kinds.tokens, 4));
add(
  'tokens-negative',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, kinds.tokens, (b) => edited(b, (v) => v.setInt32(8, -1, true))),
);
const ancillary = joinSections([...sections, { kind: 0x80000001, bytes: Uint8Array.of(1, 2, 3) }]);
add(
  'ancillary-checksum',
  'KVTC_CONTAINER_CHECKSUM',
  edited(ancillary, (v) => v.setUint8(ancillary.length - 1, 9)),
);

// Chunks of the paper's codec: containers whose every checksum fits, with contents that cannot be
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

for (const name of await readdir(folder).catch(() => [])) await rm(join(folder, name));
const manifest: Record<string, ErrorCode> = {};
for (const [name, { code, bytes }] of [...cases].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
  manifest[`${name}.kvtc`] = code;
  await writeFile(join(folder, `${name}.kvtc`), bytes);
}
await writeFile(join(folder, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
