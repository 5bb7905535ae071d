import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { TINY_KINDS, writeTinyModel } from '../../../test/tiny-gguf.ts';
import type { ErrorCode } from '../../base/errors.ts';
import { isKvtcError } from '../../base/errors.ts';
import type { ProgressEvent } from '../../base/events.ts';
import { seededRandom } from '../../base/random.ts';
import { llamaLibrary } from './bindings.ts';
import type { ContextOptions, LlamaContext, LlamaModel } from './session.ts';
import { openModel } from './session.ts';
import { convertState, createState, gatherRows, parseState, rowBytesOf, scatterRows } from './state.ts';
import type { StateView } from './state.ts';

let folder = '';
let model: LlamaModel;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kvtc-llama-'));
  await writeTinyModel(join(folder, 'llama.gguf'), 'llama');
  model = await openModel(join(folder, 'llama.gguf'), { threads: 1 });
});
after(async () => {
  model.close();
  await rm(folder, { recursive: true });
});

const throwsCode = (run: () => unknown, code: ErrorCode): void =>
  assert.throws(run, (error) => isKvtcError(error, code));
const rejectsCode = (promise: Promise<unknown>, code: ErrorCode): Promise<void> =>
  assert.rejects(promise, (error) => isKvtcError(error, code));

function someTokens(count: number, seed = 5): Int32Array {
  const random = seededRandom(seed);
  return Int32Array.from({ length: count }, () => random.below(256));
}

async function withContext<T>(
  options: Partial<ContextOptions>,
  run: (context: LlamaContext) => Promise<T>,
): Promise<T> {
  const context = await model.createContext({ contextTokens: 256, ...options });
  try {
    return await run(context);
  } finally {
    context.close();
  }
}

async function nextLogits(context: LlamaContext, tokens: Int32Array, sequence = 0): Promise<Float32Array> {
  await context.decode(tokens, { logits: 'all', sequence });
  return context.logits(tokens.length).slice();
}

/** Equal but for the order of f32 sums. */
function assertClose(got: Float32Array, expected: Float32Array): void {
  assert.equal(got.length, expected.length);
  got.forEach((x, i) => assert.ok(Math.abs(x - (expected[i] as number)) < 1e-4, `${x} at ${i}, not ${expected[i]}`));
}

/** Takes a state apart into rows and builds it again. */
function rebuild(view: StateView, streams: number): Uint8Array {
  const { geometry } = model.identity;
  const { state, view: fresh } = createState({
    format: 'blob',
    positions: view.positions,
    layers: view.layers,
    keyType: view.keyType,
    valueType: view.valueType,
    keyWidth: geometry.kvHeads * geometry.keyHeadDim,
    valueWidth: geometry.kvHeads * geometry.valueHeadDim,
    vTransposed: view.vTransposed,
    streams,
  });
  const layers = { startLayer: 0, endLayer: view.layers };
  for (const stream of ['key', 'value'] as const) {
    for (let startToken = 0; startToken < view.tokenCount; startToken += 7) {
      const tokens = { startToken, endToken: Math.min(view.tokenCount, startToken + 7) };
      const rows = new Uint8Array(view.layers * (tokens.endToken - startToken) * rowBytesOf(view, stream));
      gatherRows(view, stream, layers, tokens, rows);
      scatterRows(fresh, stream, layers, tokens, rows);
    }
  }
  return state;
}

describe('a state', () => {
  for (const kind of TINY_KINDS) {
    test(`of ${kind} comes back with the same logits`, async () => {
      const path = join(folder, `${kind}.gguf`);
      await writeTinyModel(path, kind);
      const other = await openModel(path, { threads: 1 });
      const context = await other.createContext({ contextTokens: 256 });
      await context.decode(someTokens(40), { logits: 'none' });
      const state = context.getState();
      const expected = await nextLogits(context, someTokens(8, 9));
      context.clear();
      assert.equal(context.positionRange(), null);
      context.setState(state);
      assert.deepEqual(context.positionRange(), { startPosition: 0, endPosition: 40 });
      assert.deepEqual(await nextLogits(context, someTokens(8, 9)), expected);
      assert.ok(expected.some((x) => x !== expected[0]) && expected.every(Number.isFinite));
      other.close();
    });
  }

  for (const flashAttention of [true, false]) {
    for (const type of ['f16', 'f32', 'bf16'] as const) {
      for (const [sequences, unified] of [
        [1, false],
        [2, false],
        [2, true],
      ] as const) {
        const name = `${type}, flash attention ${flashAttention ? 'on' : 'off'}, ${sequences}${unified ? ' unified' : ''} sequences`;
        test(`taken apart and built again is the same, byte for byte: ${name}`, async () => {
          const options = { keyType: type, valueType: type, flashAttention, sequences, unified };
          await withContext(options, async (context) => {
            await context.decode(someTokens(50), { logits: 'none' });
            const state = context.getState();
            const view = parseState(state);
            assert.deepEqual(
              [view.vTransposed, view.streams, view.tokenCount, view.layers, view.keyType, view.valueType],
              [!flashAttention, unified ? 1 : sequences, 50, 3, type, type],
            );
            assert.deepEqual(rebuild(view, view.streams), new Uint8Array(state));
            const expected = await nextLogits(context, someTokens(4, 9));
            context.clear();
            context.setState(rebuild(view, view.streams), sequences - 1);
            assert.deepEqual(await nextLogits(context, someTokens(4, 9), sequences - 1), expected);
          });
        });
      }
    }
  }

  test('holds shorter prefixes of the same tokens', async () => {
    await withContext({}, async (context) => {
      await context.decode(someTokens(50), { logits: 'none' });
      const whole = context.getState();
      context.truncate(0, 20);
      assert.deepEqual(context.positionRange(), { startPosition: 0, endPosition: 20 });
      const short = parseState(context.getState());
      const rows = (view: StateView): Uint8Array => {
        const out = new Uint8Array(3 * 20 * view.keyRowBytes);
        gatherRows(view, 'key', { startLayer: 0, endLayer: 3 }, { startToken: 0, endToken: 20 }, out);
        return out;
      };
      assert.deepEqual(rows(short), rows(parseState(whole)));
    });
  });

  test('with cells out of order is read in order of position', async () => {
    const exact = { keyType: 'f32', valueType: 'f32', flashAttention: false } as const;
    await withContext({ ...exact, sequences: 2, unified: true }, async (context) => {
      // The second half goes into cells freed by another sequence, before those of the first half.
      await context.decode(someTokens(10, 1), { sequence: 1, logits: 'none' });
      await context.decode(someTokens(10), { logits: 'none' });
      context.truncate(1, 0);
      await context.decode(someTokens(10, 2), { logits: 'none' });
      const view = parseState(context.getState());
      assert.deepEqual(
        [...view.positions],
        Array.from({ length: 20 }, (_, i) => i),
      );
      assert.ok(view.cellOfToken !== null);
      const expected = await nextLogits(context, someTokens(4, 9));
      context.clear();
      context.setState(rebuild(view, 1));
      const got = await nextLogits(context, someTokens(4, 9));
      assertClose(got, expected);
    });
  });

  test('that does not fit the context is refused and leaves it as it was', async () => {
    const take = (options: Partial<ContextOptions>, count = 30): Promise<Uint8Array> =>
      withContext(options, async (context) => {
        await context.decode(someTokens(count), { logits: 'none' });
        return context.getState();
      });
    await withContext({}, async (context) => {
      await context.decode(someTokens(5), { logits: 'none' });
      const mine = context.getState();
      for (const other of [
        await take({ flashAttention: false }),
        await take({ keyType: 'f32' }),
        await take({ valueType: 'bf16' }),
        await take({ sequences: 2 }),
        await take({ contextTokens: 512 }, 300),
        convertState(mine, 'file'),
      ]) {
        throwsCode(() => context.setState(other), 'KVTC_STATE_MISMATCH');
      }
      const shifted = new Uint8Array(mine.length + 9);
      shifted.set(mine, 5);
      context.setState(shifted.subarray(5, 5 + mine.length));
      throwsCode(() => context.setState(mine.subarray(0, -1)), 'KVTC_STATE_MALFORMED');
      throwsCode(() => context.setState(Uint8Array.of(...mine, 0)), 'KVTC_STATE_MALFORMED');
      assert.deepEqual(context.getState(), mine);
    });
    const other = join(folder, 'deeper.gguf');
    await writeTinyModel(other, 'llama', { layers: 4 });
    const deeper = await openModel(other, { threads: 1 });
    const context = await deeper.createContext({ contextTokens: 256 });
    const state = await take({});
    throwsCode(() => context.setState(state), 'KVTC_STATE_MISMATCH');
    deeper.close();
  });

  for (const flashAttention of [true, false]) {
    test(`that was damaged never reaches the engine unless it still is a state, flash attention ${flashAttention ? 'on' : 'off'}`, async () => {
      await withContext({ keyType: 'f32', sequences: 2, flashAttention }, async (context) => {
        await context.decode(someTokens(6), { logits: 'none' });
        const state = context.getState();
        const structure = state.length - 3 * 6 * (parseState(state).keyRowBytes + parseState(state).valueRowBytes);
        const damage = fc.array(fc.tuple(fc.nat(structure + 200), fc.nat(255)), { minLength: 1, maxLength: 3 });
        let taken = 0;
        fc.assert(
          fc.property(damage, fc.nat(9), (changes, cut) => {
            const bytes = state.slice(0, state.length - (cut === 0 ? (changes[0]?.[1] ?? 0) : 0));
            for (const [at, byte] of changes) if (at < bytes.length) bytes[at] = byte;
            try {
              context.setState(bytes, 1);
              taken += 1;
            } catch (error) {
              // KVTC_ENGINE_FAILED here would mean that the engine was handed something it refuses.
              assert.ok(isKvtcError(error) && error.code.startsWith('KVTC_STATE_'), String(error));
            }
          }),
          { numRuns: 1500 },
        );
        assert.ok(taken > 50);
      });
    });
  }

  test('as a file passes through the C API both ways', async () => {
    const library = llamaLibrary();
    const handle = library.modelLoad(join(folder, 'llama.gguf'), library.modelDefaults());
    assert.ok(handle !== null);
    const raw = library.contextInit(handle, { ...library.contextDefaults(), n_ctx: 256, flash_attn_type: 1 });
    assert.ok(raw !== null);
    const tokens = someTokens(30);
    const blob = await withContext({}, async (context) => {
      await context.decode(tokens, { logits: 'none' });
      return context.getState();
    });
    const file = convertState(blob, 'file', tokens);
    const path = join(folder, 'state.bin');
    await writeFile(path, file);
    const read = new Int32Array(64);
    const count: (number | bigint | null)[] = [null];
    assert.equal(Number(library.stateLoad(raw, path, 0, read, read.length, count)), file.length);
    assert.equal(Number(count[0]), 30);
    assert.deepEqual(read.slice(0, 30), tokens);
    assert.equal(Number(library.stateSave(raw, path, 0, tokens, tokens.length)), file.length);
    const saved = new Uint8Array(await readFile(path));
    assert.deepEqual(saved, file);
    assert.deepEqual(convertState(saved, 'blob'), new Uint8Array(blob));
    library.contextFree(raw);
    library.modelFree(handle);
  });
});

describe('decoding', () => {
  test('gives the same logits whole or in parts, and reports progress', async () => {
    await withContext({ contextTokens: 512, microBatchTokens: 64 }, async (context) => {
      const tokens = someTokens(200);
      const events: ProgressEvent[] = [];
      await context.decode(tokens, {
        onEvent: (event) => {
          if (event.type === 'progress') events.push(event);
        },
      });
      assert.deepEqual(
        events.map(({ phase, done, total, unit }) => [phase, done, total, unit]),
        [64, 128, 192, 200].map((done) => ['prefill', done, 200, 'tokens']),
      );
      const last = context.logits(1).slice();
      context.clear();
      await context.decode(tokens, { logits: 'all' });
      assertClose(context.logits(200).slice(-model.vocabSize), last);
    });
  });

  test('empties logits handed out when they are overwritten', async () => {
    await withContext({}, async (context) => {
      await context.decode(someTokens(3), { logits: 'all' });
      const logits = context.logits(3);
      assert.equal(logits.length, 3 * model.vocabSize);
      assert.equal(context.logits(2).length, 2 * model.vocabSize);
      await context.decode(someTokens(3));
      assert.equal(logits.length, 0);
      const last = context.logits(1);
      context.close();
      assert.equal(last.length, 0);
    });
  });

  test('checks tokens, positions and sequences before the engine sees them', async () => {
    await withContext({ batchTokens: 64 }, async (context) => {
      await rejectsCode(context.decode(new Int32Array(0)), 'KVTC_PROMPT_EMPTY');
      await rejectsCode(context.decode(someTokens(257)), 'KVTC_PROMPT_TOO_LONG');
      await rejectsCode(context.decode(someTokens(65), { logits: 'all' }), 'KVTC_PROMPT_TOO_LONG');
      await rejectsCode(context.decode(someTokens(7), { startPosition: 250 }), 'KVTC_PROMPT_TOO_LONG');
      await rejectsCode(context.decode(Int32Array.of(1, model.vocabSize)), 'KVTC_OPTION_INVALID');
      await rejectsCode(context.decode(Int32Array.of(-1)), 'KVTC_OPTION_INVALID');
      await rejectsCode(context.decode(someTokens(1), { sequence: 1 }), 'KVTC_OPTION_INVALID');
      await rejectsCode(context.decode(someTokens(1), { startPosition: -1 }), 'KVTC_OPTION_INVALID');
      assert.equal(context.positionRange(), null);
      await context.decode(someTokens(200), { logits: 'none', startPosition: 5 });
      await rejectsCode(context.decode(someTokens(1), { startPosition: 204 }), 'KVTC_OPTION_INVALID');
      await rejectsCode(context.decode(someTokens(1), { startPosition: 206 }), 'KVTC_OPTION_INVALID');
      await context.decode(someTokens(51), { startPosition: 205, logits: 'none' });
      assert.deepEqual(context.positionRange(), { startPosition: 5, endPosition: 256 });
      await rejectsCode(context.decode(someTokens(1)), 'KVTC_PROMPT_TOO_LONG');
    });
    await rejectsCode(model.createContext({ contextTokens: 0 }), 'KVTC_OPTION_INVALID');
    await rejectsCode(model.createContext({ contextTokens: 256, threads: 0 }), 'KVTC_OPTION_INVALID');
    await rejectsCode(
      model.createContext({ contextTokens: 256, valueType: 'q8_0', flashAttention: false }),
      'KVTC_OPTION_INVALID',
    );
  });

  test('stops when told to and takes back what it had added', async () => {
    await withContext({ contextTokens: 4096, microBatchTokens: 4096 }, async (context) => {
      await context.decode(someTokens(3));
      const abort = new AbortController();
      const reason = new Error('enough');
      const running = context.decode(someTokens(4000), { signal: abort.signal });
      setImmediate(() => abort.abort(reason));
      await assert.rejects(running, (error) => isKvtcError(error, 'KVTC_ABORTED') && error.cause === reason);
      assert.deepEqual(context.positionRange(), { startPosition: 0, endPosition: 3 });
      await rejectsCode(context.decode(someTokens(3), { signal: abort.signal }), 'KVTC_ABORTED');
      await context.decode(someTokens(3));
      assert.equal(context.logits(1).length, model.vocabSize);
    });
  });

  test('lets contexts and models be closed while it runs', async () => {
    const other = await openModel(join(folder, 'llama.gguf'), { threads: 1 });
    const context = await other.createContext({ contextTokens: 4096, microBatchTokens: 4096 });
    const running = context.decode(someTokens(4000));
    other.close();
    await assert.rejects(running);
    await assert.rejects(context.decode(someTokens(1)), /context is open/);
    await assert.rejects(other.createContext({ contextTokens: 256 }), /model is open/);
  });

  test('hands on what a tap throws', async () => {
    const tap = {
      wants: (name: string) => name === 'Kcur-1',
      take: () => {
        throw new Error('from the tap');
      },
    };
    await withContext({ tap }, (context) => assert.rejects(context.decode(someTokens(3)), /from the tap/));
  });
});

describe('sequences', () => {
  for (const unified of [true, false]) {
    test(`can be copied, ${unified ? 'sharing cells' : 'each in its own stream'}`, async () => {
      await withContext({ sequences: 2, unified, contextTokens: 512 }, async (context) => {
        await context.decode(someTokens(40), { logits: 'none' });
        context.copySequence(0, 1);
        const expected = await nextLogits(context, someTokens(4, 9), 0);
        assert.deepEqual(await nextLogits(context, someTokens(4, 9), 1), expected);
        assert.deepEqual(context.positionRange(1), { startPosition: 0, endPosition: 44 });
        context.truncate(1, 0);
        assert.equal(context.positionRange(1), null);
        assert.notEqual(context.positionRange(0), null);
      });
    });
  }
});
