// Canonical JSON (docs/format/container.md, section 3): one value has one text, so that a changed bit cannot hide.
// The text equals RFC 8785's. Knows nothing of headers.

import { KvtcError } from '../base/errors.ts';
import type { JsonValue } from './types.ts';

/** Deeper values are refused: the writers below and schema validators recurse. */
const MAX_JSON_DEPTH = 32;

/**
 * The canonical text of a value. Members with value undefined are left out.
 * Throws KVTC_CONTAINER_MALFORMED for NaN, Infinity, other non-JSON values and nesting above MAX_JSON_DEPTH.
 */
export function canonicalJson(value: unknown, depth = 0): string {
  if (depth > MAX_JSON_DEPTH) throw malformed(`is nested deeper than ${MAX_JSON_DEPTH}`);
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return JSON.stringify(value);
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw malformed(`holds the number ${value}, which JSON cannot`);
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) return `[${value.map((item) => canonicalJson(item, depth + 1)).join(',')}]`;
  if (typeof value === 'object') {
    const members = Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .toSorted(([a], [b]) => (a < b ? -1 : 1)) // compares UTF-16 code units
      .map(([name, member]) => `${JSON.stringify(name)}:${canonicalJson(member, depth + 1)}`);
    return `{${members.join(',')}}`;
  }
  throw malformed(`holds a ${typeof value}, which JSON cannot`);
}

/** Parses canonical JSON. Throws KVTC_CONTAINER_MALFORMED when `bytes` are not UTF-8, not JSON or not canonical. */
export function parseCanonicalJson(bytes: Uint8Array): JsonValue {
  let text: string;
  let value: JsonValue;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw malformed('is not UTF-8', cause);
  }
  try {
    value = JSON.parse(text) as JsonValue;
  } catch (cause) {
    throw malformed('is not JSON', cause);
  }
  if (canonicalJson(value) !== text) {
    throw malformed('is not canonical JSON (sorted unique members, no white space, shortest numbers)');
  }
  return value;
}

function malformed(what: string, cause?: unknown): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the container's header ${what}`, { section: 'header' }, { cause });
}
