// Preamble and section table ⇄ bytes (docs/format/container.md, section 2). The reader's side trusts nothing.
// Does not know what sections hold.

import { crc32 } from 'node:zlib';
import { KvtcError } from '../base/errors.ts';
import {
  alignUp,
  CHECKED_PREAMBLE_BYTES,
  FIRST_ANCILLARY_KIND,
  MAGIC,
  PREAMBLE_BYTES,
  SECTION_ENTRY_BYTES,
  SectionKind,
  VERSION,
} from './format.ts';
import type { SectionEntry } from './format.ts';
import type { ContainerLimits } from './types.ts';

/** Bytes of preamble and table together. */
export function encodeHead(sections: readonly SectionEntry[]): Uint8Array {
  const bytes = new Uint8Array(headBytes(sections.length));
  const view = new DataView(bytes.buffer);
  const last = sections.at(-1);
  bytes.set(MAGIC);
  view.setUint16(8, VERSION.major, true);
  view.setUint16(10, VERSION.minor, true);
  view.setUint32(20, sections.length, true);
  view.setBigUint64(24, BigInt(last === undefined ? bytes.length : last.offsetBytes + last.byteLength), true);
  sections.forEach((section, index) => {
    const at = PREAMBLE_BYTES + index * SECTION_ENTRY_BYTES;
    view.setUint32(at, section.kind, true);
    view.setUint32(at + 4, section.crc32, true);
    view.setBigUint64(at + 8, BigInt(section.offsetBytes), true);
    view.setBigUint64(at + 16, BigInt(section.byteLength), true);
  });
  view.setUint32(CHECKED_PREAMBLE_BYTES, headChecksum(bytes), true);
  return bytes;
}

export function headBytes(sectionCount: number): number {
  return PREAMBLE_BYTES + sectionCount * SECTION_ENTRY_BYTES;
}

function headChecksum(head: Uint8Array): number {
  return crc32(head.subarray(PREAMBLE_BYTES), crc32(head.subarray(0, CHECKED_PREAMBLE_BYTES)));
}

export interface Preamble {
  readonly minor: number;
  readonly sectionCount: number;
}

/**
 * Checks the first 64 bytes of a file of `fileBytes`, all but the head checksum and what it guards. Throws
 * KVTC_CONTAINER_MAGIC, _VERSION, _LIMIT, _TRUNCATED, _MALFORMED.
 */
export function readPreamble(bytes: Uint8Array, fileBytes: number, limits: ContainerLimits): Preamble {
  const shared = Math.min(bytes.length, MAGIC.length);
  if (bytes.length === 0 || !MAGIC.subarray(0, shared).every((byte, index) => bytes[index] === byte)) {
    throw new KvtcError('KVTC_CONTAINER_MAGIC', 'not a .kvtc file: it does not begin with the magic bytes', {
      offsetBytes: 0,
      got: Buffer.from(bytes.subarray(0, MAGIC.length)).toString('hex'),
      expected: Buffer.from(MAGIC).toString('hex'),
    });
  }
  if (bytes.length < PREAMBLE_BYTES) throw truncated('preamble', PREAMBLE_BYTES, fileBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const major = view.getUint16(8, true);
  const minor = view.getUint16(10, true);
  if (major !== VERSION.major) {
    throw new KvtcError(
      'KVTC_CONTAINER_VERSION',
      `the file has format version ${major}.${minor}; this reader knows major version ${VERSION.major}. Use a kvtc that wrote such files`,
      { gotMajor: major, gotMinor: minor, expectedMajor: VERSION.major },
    );
  }
  const sectionCount = view.getUint32(20, true);
  if (sectionCount > limits.sections) {
    throw new KvtcError(
      'KVTC_CONTAINER_LIMIT',
      `the file has ${sectionCount} sections; the limit is ${limits.sections}`,
      {
        got: sectionCount,
        limit: limits.sections,
      },
    );
  }
  const recordedBytes = view.getBigUint64(24, true);
  if (recordedBytes > BigInt(fileBytes)) throw truncated('file', Number(recordedBytes), fileBytes);
  if (recordedBytes < BigInt(fileBytes)) {
    throw new KvtcError(
      'KVTC_CONTAINER_MALFORMED',
      `the file is ${fileBytes} bytes long but records ${recordedBytes}: bytes follow its last section`,
      { gotBytes: fileBytes, expectedBytes: recordedBytes },
    );
  }
  if (headBytes(sectionCount) > fileBytes) throw truncated('section table', headBytes(sectionCount), fileBytes);
  return { minor, sectionCount };
}

/**
 * Checks preamble and table together. Returns entries that are in order, disjoint, aligned and inside the file.
 * Throws KVTC_CONTAINER_CHECKSUM, _RESERVED, _MALFORMED.
 */
export function readSectionTable(head: Uint8Array, fileBytes: number): SectionEntry[] {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const expected = headChecksum(head);
  const got = view.getUint32(CHECKED_PREAMBLE_BYTES, true);
  if (got !== expected) throw checksumMismatch('preamble and section table', 0, got, expected);
  if (view.getUint32(12, true) !== 0) {
    throw new KvtcError(
      'KVTC_CONTAINER_RESERVED',
      `the file needs features 0x${view.getUint32(12, true).toString(16)} that this reader does not know. Use a newer kvtc`,
      { offsetBytes: 12, got: view.getUint32(12, true) },
    );
  }
  checkZero(head.subarray(32, CHECKED_PREAMBLE_BYTES), 32, 'reserved bytes of the preamble');
  const sections: SectionEntry[] = [];
  let kindBefore = 0;
  let endBytes = head.length;
  for (let at = PREAMBLE_BYTES; at < head.length; at += SECTION_ENTRY_BYTES) {
    const kind = view.getUint32(at, true);
    const offset = view.getBigUint64(at + 8, true);
    const length = view.getBigUint64(at + 16, true);
    if (kind <= kindBefore) {
      throw malformedTable(at, `section kind ${kind} follows ${kindBefore}; kinds must rise (no duplicates)`);
    }
    if (kind > SectionKind.tokens && kind < FIRST_ANCILLARY_KIND) {
      throw new KvtcError('KVTC_CONTAINER_RESERVED', `section kind ${kind} is unknown. Use a newer kvtc`, {
        offsetBytes: at,
        got: kind,
      });
    }
    const expectedOffset = alignUp(endBytes);
    if (offset !== BigInt(expectedOffset)) {
      throw malformedTable(at, `section kind ${kind} begins at ${offset}; expected ${expectedOffset}`);
    }
    if (offset + length > BigInt(fileBytes)) {
      throw malformedTable(at, `section kind ${kind} ends at ${offset + length}, past the file's ${fileBytes} bytes`);
    }
    kindBefore = kind;
    endBytes = expectedOffset + Number(length);
    sections.push({
      kind,
      crc32: view.getUint32(at + 4, true),
      offsetBytes: expectedOffset,
      byteLength: Number(length),
    });
  }
  if (endBytes !== fileBytes) {
    throw malformedTable(head.length, `the last section ends at ${endBytes}, the file at ${fileBytes}`);
  }
  return sections;
}

/** Throws KVTC_CONTAINER_RESERVED when one of `bytes` (at `offsetBytes` of the file) is not zero. */
export function checkZero(bytes: Uint8Array, offsetBytes: number, what: string): void {
  const index = bytes.findIndex((byte) => byte !== 0);
  if (index >= 0) {
    throw new KvtcError('KVTC_CONTAINER_RESERVED', `${what} must be zero; offset ${offsetBytes + index} is not`, {
      offsetBytes: offsetBytes + index,
      got: bytes[index],
      expected: 0,
    });
  }
}

export function truncated(what: string, neededBytes: number, availableBytes: number): KvtcError {
  return new KvtcError(
    'KVTC_CONTAINER_TRUNCATED',
    `the file ends inside its ${what}: ${availableBytes} bytes, expected ${neededBytes}`,
    { section: what, neededBytes, availableBytes },
  );
}

export function checksumMismatch(what: string, offsetBytes: number, got: number, expected: number): KvtcError {
  return new KvtcError(
    'KVTC_CONTAINER_CHECKSUM',
    `the checksum of the ${what} at offset ${offsetBytes} does not match`,
    {
      section: what,
      offsetBytes,
      got,
      expected,
    },
  );
}

function malformedTable(offsetBytes: number, what: string): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the section table is invalid: ${what}`, {
    section: 'section table',
    offsetBytes,
  });
}
