import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isKvtcError } from '../base/errors.ts';
import { calibrationTexts, heldOutTexts, type CorpusText } from './corpus.ts';

const sources = (texts: readonly CorpusText[], kind: string): string[] =>
  texts.filter((text) => text.kind === kind).map((text) => text.source);

describe('the corpora', () => {
  it('never calibrate on a held-out text', async () => {
    const calibration = await calibrationTexts();
    const heldOut = await heldOutTexts();
    const held = new Set(heldOut.map((text) => `${text.kind}/${text.source}`));
    assert.deepEqual(
      calibration.filter((text) => held.has(`${text.kind}/${text.source}`)),
      [],
    );
    assert.equal(held.size, heldOut.length);
    assert.equal(sources(heldOut, 'code').length, 60);
    assert.ok(sources(calibration, 'code').length > 60);
    assert.deepEqual(sources(calibration, 'moby-dick'), []);
    assert.deepEqual(sources(heldOut, 'moby-dick'), ['data.txt']);
    const years = new Set(sources(heldOut, 'address').map((source) => source.slice(0, 4)));
    assert.deepEqual([...years], ['1858', '1901', '1934', '1947', '1962', '1981', '1999', '2011']);
    for (const source of sources(calibration, 'address')) {
      assert.ok(Number(source.slice(0, 4)) >= 1850 && !years.has(source.slice(0, 4)), source);
    }
    for (const text of [...calibration, ...heldOut]) assert.ok(text.text.length > 1000, text.source);
  });

  it('come in the same order every time', async () => {
    const first = await calibrationTexts();
    assert.deepEqual(await calibrationTexts(), first);
    const code = sources(first, 'code');
    assert.notDeepEqual(code, code.toSorted(), 'shuffled');
  });

  it('tell what to install when Python is missing', async () => {
    const kept = process.env['KVTC_PYTHON'];
    process.env['KVTC_PYTHON'] = 'kvtc-no-such-python';
    try {
      await assert.rejects(
        heldOutTexts(),
        (error) => isKvtcError(error, 'KVTC_CORPUS_MISSING') && /install Python/.test(error.message),
      );
    } finally {
      if (kept === undefined) delete process.env['KVTC_PYTHON'];
      else process.env['KVTC_PYTHON'] = kept;
    }
  });
});
