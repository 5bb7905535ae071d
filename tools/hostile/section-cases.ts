// Broken chunk indexes, exact rows, positions and token ids (docs/format/container.md, sections 4 to 6).
// All section checksums fit.

import { SectionKind } from '../../src/container/format.ts';
import { edited, joinSections, replaceSection, splitSections } from '../../test/container-surgery.ts';
import { tinyBytes } from '../../test/tiny-container.ts';
import { hostileCases } from './cases.ts';

const { cases, add } = hostileCases();
export { cases as sectionCases };

const good = await tinyBytes();

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
const ancillary = joinSections([...splitSections(good), { kind: 0x80000001, bytes: Uint8Array.of(1, 2, 3) }]);
add(
  'ancillary-checksum',
  'KVTC_CONTAINER_CHECKSUM',
  edited(ancillary, (v) => v.setUint8(ancillary.length - 1, 9)),
);
