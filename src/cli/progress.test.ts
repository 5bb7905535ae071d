import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { progressView } from './progress.ts';

test('elsewhere than on a terminal a phase that begins again counts its time anew', (t) => {
  let nowMs = 0;
  t.mock.method(performance, 'now', () => nowMs);
  const stream = new PassThrough();
  const view = progressView(stream as unknown as NodeJS.WriteStream, false);
  const at = (seconds: number, done: number): string => {
    nowMs = seconds * 1000;
    view.onEvent({ type: 'progress', phase: 'basis', done, total: 10, unit: 'passes' });
    return ((stream.read() as Buffer | null) ?? '').toString();
  };
  assert.equal(at(0, 0), '');
  assert.equal(at(20, 1), 'basis: 1 of 10 passes, 3 min 0 s left\n');
  assert.equal(at(25, 2), '', 'a line every ten seconds at most');
  assert.equal(at(200, 10), 'basis: 10 of 10 passes\n');
  assert.equal(at(210, 0), 'basis: 0 of 10 passes\n');
  assert.equal(at(220, 1), 'basis: 1 of 10 passes, 1 min 30 s left\n');
});
