// Whether a parsed state is one that a given context can take. Does not touch the context.

import { KvtcError } from '../../base/errors.ts';
import type { CacheType } from '../../base/geometry.ts';
import { elementBytes, layerWidth } from '../../base/geometry.ts';
import type { ModelIdentity } from '../../profile/profile.ts';
import type { StateView } from './state-layout.ts';

/** What matters of a context. */
export interface StateTarget {
  readonly contextTokens: number;
  readonly keyType: CacheType;
  readonly valueType: CacheType;
  readonly vTransposed: boolean;
  readonly streams: number;
}

/**
 * Throws KVTC_STATE_MISMATCH where the engine would refuse the state (and empty the sequence), end the process, or take
 * it for something else.
 */
export function requireStateFits(view: StateView, context: StateTarget, { geometry }: ModelIdentity): void {
  const facts: (readonly [what: string, got: string | number | boolean, expected: string | number | boolean])[] = [
    ['kind', view.kind, 'blob'],
    ['streams', view.streams, context.streams],
  ];
  if (view.tokenCount > 0) {
    facts.push(
      ['layers', view.layers, geometry.layers],
      ['key type', view.keyType, context.keyType],
      ['value type', view.valueType, context.valueType],
      ['key row bytes', view.keyRowBytes, elementBytes(context.keyType, layerWidth(geometry, 'key'))],
      ['value row bytes', view.valueRowBytes, elementBytes(context.valueType, layerWidth(geometry, 'value'))],
      ['values transposed', view.vTransposed, context.vTransposed],
    );
  }
  for (const [what, got, expected] of facts) {
    if (got === expected) continue;
    throw new KvtcError('KVTC_STATE_MISMATCH', `the state has ${what} ${got}, the context ${expected}`, {
      what,
      got,
      expected,
    });
  }
  const endPosition = (view.positions.at(-1) ?? -1) + 1;
  if (endPosition > context.contextTokens) {
    throw new KvtcError(
      'KVTC_STATE_MISMATCH',
      `the state reaches position ${endPosition - 1}, the context holds ${context.contextTokens} tokens`,
      { endPosition, contextTokens: context.contextTokens },
    );
  }
}
