// A list of broken files, kept in one place while the modules beside it fill it.
// Does not know what is broken in them.

import type { ErrorCode } from '../../src/base/errors.ts';

export interface HostileCase {
  readonly name: string;
  readonly code: ErrorCode;
  readonly bytes: Uint8Array;
}

/** A list and the function that adds to it. */
export function hostileCases(): {
  readonly cases: HostileCase[];
  readonly add: (name: string, code: ErrorCode, bytes: Uint8Array) => void;
} {
  const cases: HostileCase[] = [];
  return { cases, add: (name, code, bytes) => void cases.push({ name, code, bytes }) };
}
