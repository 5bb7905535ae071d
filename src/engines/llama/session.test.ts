import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { writeTinyModel } from '../../../test/tiny-gguf.ts';
import type { ErrorCode } from '../../base/errors.ts';
import { isKvtcError } from '../../base/errors.ts';
import type { LlamaModel } from './session.ts';
import { openModel, quantizeModel } from './session.ts';

let folder = '';
let model: LlamaModel;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-session-'));
  await writeTinyModel(join(folder, 'llama.gguf'), 'llama');
  model = await openModel(join(folder, 'llama.gguf'), { threads: 1 });
});
after(async () => {
  model.close();
  await rm(folder, { recursive: true });
});

const rejectsCode = (promise: Promise<unknown>, code: ErrorCode): Promise<void> =>
  assert.rejects(promise, (error) => isKvtcError(error, code));

test('turns text into tokens and back', () => {
  const text = 'the and: ünïcödé\n';
  const tokens = model.tokenize(text);
  assert.ok(tokens.length < Buffer.byteLength(text));
  assert.equal(model.detokenize(tokens), text);
  assert.equal(model.tokenize('').length, 0);
  const end = model.vocabSize - 1;
  assert.deepEqual([...model.tokenize('a<|end|>', { parseSpecial: true })].at(-1), end);
  assert.ok(!model.tokenize('a<|end|>').includes(end));
  assert.ok(model.isEndOfGeneration(end) && !model.isEndOfGeneration(0));
  assert.throws(
    () => model.detokenize(Int32Array.of(model.vocabSize)),
    (error) => isKvtcError(error, 'KVTC_OPTION_INVALID'),
  );
});

test('says why a model cannot be opened', async () => {
  await rejectsCode(openModel(join(folder, 'absent.gguf')), 'KVTC_FILE_NOT_FOUND');
  const bytes = await readFile(join(folder, 'llama.gguf'));
  const path = join(folder, 'broken.gguf');
  // A tensor under another name: the reader has nothing against it, the engine does.
  await writeFile(path, Buffer.from(bytes.toString('latin1').replace('blk.1.ffn_up', 'blk.1.ffn_xx'), 'latin1'));
  await assert.rejects(
    openModel(path),
    (error) => isKvtcError(error, 'KVTC_ENGINE_FAILED') && /ffn_up/.test(error.message),
  );
  await rejectsCode(openModel(path, { signal: AbortSignal.abort() }), 'KVTC_ABORTED');
});

test('rewrites models with f16 and f32 weights', async () => {
  const from = join(folder, 'llama.gguf');
  for (const type of ['f16', 'f32'] as const) {
    const to = join(folder, `copy-${type}.gguf`);
    await quantizeModel(from, to, type);
    const copy = await openModel(to, { threads: 1 });
    assert.deepEqual(copy.identity.geometry, model.identity.geometry);
    assert.deepEqual(copy.identity.rope, model.identity.rope);
    copy.close();
  }
  await rejectsCode(quantizeModel(from, join(folder, 'absent', 'x.gguf'), 'f16'), 'KVTC_ENGINE_FAILED');
});

test('keeps nothing of a rewritten model that was not finished', async () => {
  const target = join(folder, 'taken');
  await mkdir(target);
  await rejectsCode(quantizeModel(join(folder, 'llama.gguf'), target, 'f16'), 'KVTC_WRITE_FAILED');
  assert.ok(!(await readdir(folder)).some((name) => name.endsWith('.part')));
});

test('says so when a file without vocabulary is to tokenise', async () => {
  const path = join(folder, 'mute.gguf');
  await writeTinyModel(path, 'llama', { vocabulary: false });
  const mute = await openModel(path, { threads: 1 });
  assert.throws(
    () => mute.tokenize('text'),
    (error) => isKvtcError(error, 'KVTC_MODEL_UNSUPPORTED'),
  );
  const context = await mute.createContext({ contextTokens: 256 });
  await context.decode(Int32Array.of(1, 2, 3));
  assert.equal(context.logits(1).length, mute.vocabSize);
  mute.close();
});
