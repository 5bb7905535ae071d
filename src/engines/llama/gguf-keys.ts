// Typed look-ups in GGUF metadata. Does not know which keys there are.

import { KvtcError } from '../../base/errors.ts';
import type { Gguf } from './gguf.ts';

/** The number at `key`; `fallback` when absent, or KVTC_GGUF_MALFORMED when there is neither. */
export function numberAt(gguf: Gguf, key: string, fallback?: number): number {
  const value = gguf.metadata.get(key) ?? fallback;
  if (typeof value === 'number' && Number.isFinite(value)) return value;
  throw wrong(key, value, 'a number');
}

/** The string at `key`; `fallback` when absent, or KVTC_GGUF_MALFORMED when there is neither. */
export function stringAt(gguf: Gguf, key: string, fallback?: string): string {
  const value = gguf.metadata.get(key) ?? fallback;
  if (typeof value === 'string') return value;
  throw wrong(key, value, 'a string');
}

function wrong(key: string, value: unknown, expected: string): KvtcError {
  const got = value === undefined ? 'nothing' : typeof value === 'object' ? 'an array' : JSON.stringify(value);
  return new KvtcError('KVTC_GGUF_MALFORMED', `the model file has ${got} at ${key}; expected ${expected}`, { key });
}
