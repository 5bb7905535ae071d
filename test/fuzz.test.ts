// Seeded mutations of valid files. KVTC_FUZZ_RUNS and KVTC_FUZZ_SEED widen the search; a failure prints its seed, and
// its bytes belong into test/hostile.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ERROR_KINDS, isKvtcError } from '../src/base/errors.ts';
import { seededRandom } from '../src/base/random.ts';
import type { Random } from '../src/base/random.ts';
import { decompressBlocks, entropyMethod } from '../src/codec/entropy/blocks.ts';
import { paperCodec } from '../src/codec/paper/paper-codec.ts';
import { parsePaperParameters } from '../src/codec/paper/parameters.ts';
import { openContainer } from '../src/container/reader.ts';
import { editHead, edited, joinSections, splitSections } from './container-surgery.ts';
import { readTiny, tinyBytes, tinyContent, TINY_HEADER } from './tiny-container.ts';
import type { TinyContent } from './tiny-container.ts';

const RUNS = Number(process.env['KVTC_FUZZ_RUNS'] ?? 4000);
const SEED = Number(process.env['KVTC_FUZZ_SEED'] ?? 20261124);
const LIMITS = {
  headerBytes: 4096,
  sections: 12,
  tokens: 256,
  chunks: 64,
  chunkTokens: 64,
  packedChunkBytes: 8192,
  storedChunkBytes: 8192,
  exactLayerBytes: 4096,
};
/** No array may be longer than the longest file plus the largest limit. */
const ALLOCATION_LIMIT_BYTES = 32 * 1024;

const folder = await mkdtemp(join(tmpdir(), 'kvtc-fuzz-'));
after(() => rm(folder, { recursive: true }));

const golden = join(import.meta.dirname, 'golden', 'v1');
const originals: readonly Uint8Array[] = [
  await tinyBytes(),
  await tinyBytes(tinyContent({ ...TINY_HEADER, exactRanges: [] }, 2, false)),
  new Uint8Array(await readFile(join(golden, 'windowed-deflate.kvtc'))),
  new Uint8Array(await readFile(join(golden, 'one-token.kvtc'))),
];

/** Longest array made through a global constructor since the last reset; Node's own buffers come from these lengths. */
const allocations = { largestBytes: 0 };
for (const name of ['Uint8Array', 'Uint16Array', 'Int32Array', 'Uint32Array', 'Float32Array'] as const) {
  const original = globalThis[name];
  const watched = new Proxy(original, {
    construct(target, parameters: unknown[], newTarget): object {
      if (typeof parameters[0] === 'number') {
        const bytes = parameters[0] * target.BYTES_PER_ELEMENT;
        allocations.largestBytes = Math.max(allocations.largestBytes, bytes);
        if (bytes > ALLOCATION_LIMIT_BYTES) throw new Error(`an allocation of ${bytes} bytes`);
      }
      return Reflect.construct(target, parameters, newTarget === watched ? target : newTarget) as object;
    },
  });
  Object.defineProperty(globalThis, name, { value: watched, configurable: true, writable: true });
}

const INTERESTING = [0, 1, 2, 3, 23, 24, 63, 64, 255, 256, 65535, 0x7fffffff, 0x80000000, 0xffffffff];

function mutate(bytes: Uint8Array, random: Random): Uint8Array {
  let out: Uint8Array = bytes.slice();
  for (let count = 1 + random.below(3); count > 0; count--) {
    const at = random.below(Math.max(1, out.length));
    const pick = random.below(7);
    if (out.length === 0 || pick === 0) {
      out = Uint8Array.from([...out.subarray(0, at), random.below(256), ...out.subarray(at)]);
    } else if (pick === 1) {
      out = Uint8Array.from([...out.subarray(0, at), ...out.subarray(at + 1 + random.below(70))]);
    } else if (pick === 2) {
      out[at] = random.below(256);
    } else if (pick === 3 && out.length >= 4) {
      const value = INTERESTING[random.below(INTERESTING.length)] as number;
      out = edited(out, (view) => view.setUint32(Math.min(at & ~3, out.length - 4), value, true));
    } else if (pick === 4) {
      out.copyWithin(at, random.below(out.length), random.below(out.length));
    } else if (pick === 5) {
      out = out.slice(0, at);
    } else {
      out[at] = (out[at] as number) ^ (1 << random.below(8));
    }
  }
  return out;
}

/** Mutates one section, or the table, and makes the checksums fit, so that the checks behind them are reached. */
function mutateInside(bytes: Uint8Array, random: Random): Uint8Array {
  const sections = splitSections(bytes);
  const index = random.below(sections.length + 1);
  const section = sections[index];
  if (section === undefined) {
    return editHead(bytes, (view) => {
      const at = 12 + random.below(52 + 24 * sections.length);
      if (at < 20 || at >= 24) view.setUint8(at, random.below(256));
    });
  }
  if (random.below(8) === 0) section.kind = INTERESTING[random.below(INTERESTING.length)] as number;
  else section.bytes = mutate(section.bytes, random);
  return joinSections(sections);
}

interface Outcome {
  readonly code: string | null;
  readonly content: TinyContent | null;
}

async function readAll(source: string | Uint8Array): Promise<Outcome> {
  try {
    const container = await openContainer(source, { limits: LIMITS });
    try {
      await container.verify();
      const content = await readTiny(container);
      if (container.header.codec === 'kvtc-paper') {
        const plans = parsePaperParameters(container.header.codecParameters);
        for (const chunk of content.chunks) {
          const tokens = chunk.endToken - chunk.startToken;
          const plan = plans[chunk.stream];
          const packed = await decompressBlocks(
            chunk.stored,
            chunk.packedBytes,
            entropyMethod(container.header.entropy),
          );
          if (plan.rank > 64) continue; // what the profile's rank check refuses before anything is allocated
          paperCodec.decodeChunk(packed, tokens, plan, new Float32Array(tokens * plan.rank));
        }
      }
      return { code: null, content };
    } finally {
      await container.close();
    }
  } catch (error) {
    if (!isKvtcError(error) || ERROR_KINDS[error.code] !== 'input') throw error;
    return { code: error.code, content: null };
  }
}

test(`mutated files give an input error or identical data, ${RUNS} runs from seed ${SEED}`, async () => {
  const path = join(folder, 'mutant.kvtc');
  const contents = await Promise.all(originals.map(async (bytes) => (await readAll(bytes)).content));
  const outcomes = new Map<string, number>();
  for (let run = 0; run < RUNS; run++) {
    const random = seededRandom(SEED + run);
    const which = random.below(originals.length);
    const original = originals[which] as Uint8Array;
    const inside = random.below(2) === 1;
    const mutant = inside ? mutateInside(original, random) : mutate(original, random);
    allocations.largestBytes = 0;
    let source: string | Uint8Array = mutant;
    if (run % 10 === 0) await writeFile((source = path), mutant);
    let outcome: Outcome;
    try {
      outcome = await readAll(source);
    } catch (cause) {
      throw new Error(`seed ${SEED + run}: ${String(cause)}`, { cause });
    }
    assert.ok(allocations.largestBytes <= ALLOCATION_LIMIT_BYTES);
    outcomes.set(outcome.code ?? 'read', (outcomes.get(outcome.code ?? 'read') ?? 0) + 1);
    if (outcome.content === null) continue;
    if (!inside) assert.deepEqual(outcome.content, contents[which], `seed ${SEED + run} gave other data`);
    // A file that passes all checks is the one encoding of its content, but for ancillary sections and ignorable bits.
    else if (Buffer.from(mutant).readUInt32LE(16) === 0 && splitSections(mutant).every(({ kind }) => kind <= 7)) {
      const minor = Buffer.from(mutant).readUInt16LE(10);
      if (minor === 0)
        assert.deepEqual(await tinyBytes(outcome.content), mutant, `seed ${SEED + run} is not canonical`);
    }
  }
  // The search must have reached past the checksums and into every kind of refusal.
  for (const code of ['MAGIC', 'CHECKSUM', 'TRUNCATED', 'MALFORMED', 'RESERVED', 'LIMIT']) {
    assert.ok((outcomes.get(`KVTC_CONTAINER_${code}`) ?? 0) > 0, `${code}: ${JSON.stringify([...outcomes])}`);
  }
});

test('the allocation watch sees what the reader allocates', async () => {
  allocations.largestBytes = 0;
  await writeFile(join(folder, 'good.kvtc'), originals[0] as Uint8Array);
  assert.equal((await readAll(join(folder, 'good.kvtc'))).code, null);
  assert.ok(allocations.largestBytes >= 200);
  assert.throws(() => new Uint8Array(ALLOCATION_LIMIT_BYTES + 1), /an allocation/);
});
