import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isKvtcError } from '../../base/errors.ts';
import type { PaperParameters } from './parameters.ts';
import { filePaperParameters, parsePaperParameters } from './parameters.ts';

const parameters: PaperParameters = {
  keyRatio: 16,
  valueRatio: 8,
  key: { rank: 16, groups: [{ start: 0, size: 16, type: 'int4', exponent: 0 }] },
  value: { rank: 16, groups: [{ start: 3, size: 1, type: 'fp8', exponent: -4 }] },
};

test('parameters survive JSON', () => {
  const json: unknown = JSON.parse(JSON.stringify(filePaperParameters(parameters)));
  assert.deepEqual(parsePaperParameters(json), parameters);
});

test('parameters that no plan can have are refused', () => {
  const group = { start: 0, size: 16, type: 'int4', exponent: 0 };
  for (const bad of [
    null,
    {},
    { ...parameters, keyRatio: 0 },
    { ...parameters, surprise: 1 },
    { ...parameters, key: undefined },
    { ...parameters, key: { rank: 16.5, groups: [] } },
    { ...parameters, key: { rank: 2 ** 30, groups: [] } },
    { ...parameters, key: { rank: 16, groups: [group, group] } },
    { ...parameters, key: { rank: 16, groups: [{ ...group, size: 17 }] } },
    { ...parameters, key: { rank: 16, groups: [{ ...group, type: 'int3' }] } },
    { ...parameters, key: { rank: 16, groups: [{ ...group, exponent: 1 }] } },
  ]) {
    assert.throws(
      () => parsePaperParameters(bad),
      (error) => isKvtcError(error, 'KVTC_CONTAINER_MALFORMED'),
    );
  }
});
