// Broken preambles, truncations and section tables (docs/format/container.md, section 2).
// Checksums fit unless they are the case.

import { PREAMBLE_BYTES, SECTION_ENTRY_BYTES } from '../../src/container/format.ts';
import { edited, editHead, joinSections, splitSections } from '../../test/container-surgery.ts';
import { tinyBytes } from '../../test/tiny-container.ts';
import { hostileCases } from './cases.ts';

const { cases, add } = hostileCases();
export { cases as headCases };

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
