// Takes a container apart and puts it together again with parts changed and checksums made to fit, so that tests can
// break one rule at a time. Trusts its input.

import { crc32 } from 'node:zlib';
import { alignUp, PREAMBLE_BYTES, SECTION_ENTRY_BYTES } from '../src/container/format.ts';
import { encodeHead, headBytes } from '../src/container/section-table.ts';

export interface RawSection {
  kind: number;
  bytes: Uint8Array;
}

export function splitSections(file: Uint8Array): RawSection[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  return Array.from({ length: view.getUint32(20, true) }, (_, index) => {
    const at = PREAMBLE_BYTES + index * SECTION_ENTRY_BYTES;
    const offset = Number(view.getBigUint64(at + 8, true));
    return {
      kind: view.getUint32(at, true),
      bytes: file.slice(offset, offset + Number(view.getBigUint64(at + 16, true))),
    };
  });
}

/** A file of the given sections, in the given order, with right offsets and checksums. */
export function joinSections(sections: readonly RawSection[]): Uint8Array {
  let endBytes = headBytes(sections.length);
  const entries = sections.map(({ kind, bytes }) => {
    const offsetBytes = alignUp(endBytes);
    endBytes = offsetBytes + bytes.length;
    return { kind, crc32: crc32(bytes), offsetBytes, byteLength: bytes.length };
  });
  const file = new Uint8Array(endBytes);
  file.set(encodeHead(entries));
  entries.forEach((entry, index) => file.set(sections[index]?.bytes ?? [], entry.offsetBytes));
  return file;
}

/** A copy of `file` with one section's bytes replaced. */
export function replaceSection(file: Uint8Array, kind: number, edit: (bytes: Uint8Array) => Uint8Array): Uint8Array {
  const sections = splitSections(file);
  return joinSections(
    sections.map((section) => (section.kind === kind ? { kind, bytes: edit(section.bytes) } : section)),
  );
}

/** A copy of `file` with preamble or table edited in place and the head checksum made to fit. */
export function editHead(file: Uint8Array, edit: (view: DataView) => void): Uint8Array {
  const copy = Uint8Array.from(file); // Buffer's slice shares memory
  const view = new DataView(copy.buffer);
  const length = headBytes(view.getUint32(20, true));
  edit(view);
  view.setUint32(60, crc32(copy.subarray(PREAMBLE_BYTES, length), crc32(copy.subarray(0, 60))), true);
  return copy;
}

/** A copy of section bytes with an edit through a DataView. */
export function edited(bytes: Uint8Array, edit: (view: DataView) => void): Uint8Array {
  const copy = Uint8Array.from(bytes);
  edit(new DataView(copy.buffer));
  return copy;
}
