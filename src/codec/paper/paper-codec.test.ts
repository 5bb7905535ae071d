import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import { isKvtcError } from '../../base/errors.ts';
import { decompressBlocks } from '../entropy/blocks.ts';
import { referenceResults, sampleCoefficients } from '../../../test/paper-reference.ts';
import { paperCodec } from './paper-codec.ts';
import type { GroupType, PaperPlan, PlanGroup } from './plan.ts';
import { planProblem } from './plan.ts';

/** The example of docs/format/paper-codec.md: three groups, components 9 to 15 in none. */
const examplePlan: PaperPlan = {
  rank: 16,
  groups: [
    { start: 0, size: 2, type: 'fp8', exponent: -1 },
    { start: 2, size: 3, type: 'int2', exponent: 0 },
    { start: 5, size: 4, type: 'int4', exponent: 0 },
  ],
};
const exampleTokens = [
  [1, -3, 1, 2, 4, -1, 0, 6.5, 14, 0, 0, 0, 0, 0, 0, 0],
  [0.25, 1000, 5, 5, 5, 0, 0.5, 1, 7.5, 0, 0, 0, 0, 0, 0, 0],
];
const exampleValues = Float32Array.from(exampleTokens.flat());
const exampleDecoded = Float32Array.from(exampleValues);
exampleDecoded[7] = 7;
exampleDecoded[17] = 224;

const malformed = (error: unknown): boolean => isKvtcError(error, 'KVTC_CHUNK_MALFORMED');

const sha256 = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');

function decode(packed: Uint8Array, tokens: number, plan: PaperPlan): Float32Array {
  const out = new Float32Array(tokens * plan.rank).fill(Number.NaN);
  paperCodec.decodeChunk(packed, tokens, plan, out);
  return out;
}

/** The fenced `hex` blocks of the format page. */
async function pageBytes(): Promise<Buffer[]> {
  const page = await readFile(new URL('../../../docs/format/paper-codec.md', import.meta.url), 'utf8');
  return [...page.matchAll(/```hex\n(.*?)```/gsu)].map(([, text = '']) =>
    Buffer.from(text.replaceAll(/#.*$/gmu, '').replaceAll(/\s/gu, ''), 'hex'),
  );
}

test("the format page's example is what the codec writes and reads", async () => {
  const [packed, frame] = await pageBytes();
  assert.ok(packed !== undefined && frame !== undefined);
  assert.deepEqual(Buffer.from(paperCodec.encodeChunk(exampleValues, 2, examplePlan)), packed);
  assert.deepEqual(decode(packed, 2, examplePlan), exampleDecoded);
  const fromFrame = await decompressBlocks(frame, packed.length, 'deflate');
  assert.deepEqual(Buffer.from(fromFrame), packed);
});

test('bytes and values equal those of the independent numpy implementation', async () => {
  const coefficients = sampleCoefficients(256, 640, 5);
  for (const { ratio, plan, packedSha256, decodedSha256 } of await referenceResults()) {
    const rows = new Float32Array(100 * plan.rank);
    for (let t = 0; t < 100; t++) rows.set(coefficients.subarray(t * 640, t * 640 + plan.rank), t * plan.rank);
    const packed = paperCodec.encodeChunk(rows, 100, plan);
    assert.equal(sha256(packed), packedSha256, `packed bytes at ratio ${ratio}`);
    assert.equal(sha256(new Uint8Array(decode(packed, 100, plan).buffer)), decodedSha256, `values at ratio ${ratio}`);
  }
});

const arbitraryPlan: fc.Arbitrary<PaperPlan> = fc
  .array(
    fc.record({
      gap: fc.nat(3),
      size: fc.constantFrom(1, 2, 3, 5, 16, 64),
      type: fc.constantFrom<GroupType>('int2', 'int4', 'fp8'),
      exponent: fc.integer({ min: -8, max: 8 }),
    }),
    { maxLength: 6 },
  )
  .map((parts) => {
    let end = 0;
    const groups = parts.map(({ gap, size, type, exponent }): PlanGroup => {
      const start = end + gap;
      end = start + size;
      return { start, size, type, exponent: type === 'fp8' ? exponent : 0 };
    });
    return { rank: Math.ceil(end / 16) * 16, groups };
  });

test('any plan and any finite coefficients decode within half a step, saturation and f16 rounding allowed for', () => {
  fc.assert(
    fc.property(
      arbitraryPlan,
      fc.nat(5),
      fc.integer(),
      fc.integer({ min: -12, max: 9 }),
      (plan, tokens, seed, octave) => {
        assert.equal(planProblem(plan, plan.rank), null);
        const values = sampleCoefficients(tokens, plan.rank, seed).map((value) => value * 2 ** octave);
        const packed = paperCodec.encodeChunk(values, tokens, plan);
        assert.equal(packed.length, paperCodec.packedBytes(tokens, plan));
        const out = decode(packed, tokens, plan);
        for (let t = 0; t < tokens; t++) {
          const coded = new Set<number>();
          for (const { start, size, type, exponent } of plan.groups) {
            const from = t * plan.rank + start;
            const group = values.subarray(from, from + size);
            const reach = 448 * 2 ** exponent;
            const largest = Math.max(...group.map(Math.abs));
            const range = Math.max(...group) - Math.min(...group);
            for (const [i, value] of group.entries()) {
              const got = out[from + i] as number;
              coded.add(start + i);
              const bound =
                type === 'fp8'
                  ? Math.max(Math.abs(value) / 16, 2 ** (exponent - 10))
                  : range / (type === 'int2' ? 6 : 30) + largest / 256 + 2 ** -20;
              const target = type === 'fp8' ? Math.max(-reach, Math.min(reach, value)) : value;
              assert.ok(Math.abs(got - target) <= bound * 1.0001, `${type} ${value} → ${got}`);
            }
          }
          for (let c = 0; c < plan.rank; c++) if (!coded.has(c)) assert.equal(out[t * plan.rank + c], 0);
        }
      },
    ),
  );
});

test('decoded fp8 values code again to the same bytes', () => {
  const plan: PaperPlan = { rank: 16, groups: [{ start: 2, size: 9, type: 'fp8', exponent: -3 }] };
  const packed = paperCodec.encodeChunk(sampleCoefficients(50, 16, 3), 50, plan);
  assert.deepEqual(paperCodec.encodeChunk(decode(packed, 50, plan), 50, plan), packed);
});

test('values beyond f16 saturate to finite numbers', () => {
  const plan: PaperPlan = { rank: 16, groups: [{ start: 0, size: 16, type: 'int4', exponent: 0 }] };
  const values = new Float32Array(16).fill(1e30);
  values[0] = -1e30;
  const out = decode(paperCodec.encodeChunk(values, 1, plan), 1, plan);
  assert.equal(out[0], -65_504);
  assert.ok(out.every(Number.isFinite));
});

test('NaN and Inf anywhere in a chunk are refused, components without a group included', () => {
  for (const bad of [Number.NaN, Infinity, -Infinity]) {
    for (const at of [0, 3, 6, 15, 16, 31]) {
      const values = Float32Array.from(exampleValues);
      values[at] = bad;
      assert.throws(
        () => paperCodec.encodeChunk(values, 2, examplePlan),
        (error) => isKvtcError(error, 'KVTC_ROWS_NOT_FINITE'),
      );
    }
  }
});

test('a chunk of another length, with padding bits, NaN codes or Inf metadata is refused', () => {
  const packed = paperCodec.encodeChunk(exampleValues, 2, examplePlan);
  assert.throws(() => decode(packed.subarray(1), 2, examplePlan), malformed);
  assert.throws(() => decode(packed, 1, examplePlan), malformed);
  assert.throws(() => decode(packed, 3, examplePlan), malformed);
  const broken = (offset: number, byte: number): Uint8Array => {
    const bytes = Uint8Array.from(packed);
    bytes[offset] = byte;
    return bytes;
  };
  assert.throws(() => decode(broken(25, 0x40), 2, examplePlan), malformed, 'padding bit');
  assert.throws(() => decode(broken(18, 0x7f), 2, examplePlan), malformed, 'fp8 NaN');
  assert.throws(() => decode(broken(18, 0xff), 2, examplePlan), malformed, 'fp8 NaN, negative');
  assert.throws(() => decode(broken(1, 0x7c), 2, examplePlan), malformed, 'minimum Inf');
  assert.throws(() => decode(broken(7, 0x7e), 2, examplePlan), malformed, 'step NaN');
});

test('an empty plan and an empty chunk take no bytes', () => {
  const empty: PaperPlan = { rank: 0, groups: [] };
  assert.equal(paperCodec.encodeChunk(new Float32Array(0), 7, empty).length, 0);
  assert.deepEqual(decode(new Uint8Array(0), 7, empty), new Float32Array(0));
  assert.equal(paperCodec.encodeChunk(new Float32Array(0), 0, examplePlan).length, 0);
});

test('plans from outside are checked', () => {
  const group = (start: number, size: number, type: GroupType = 'int2', exponent = 0): PlanGroup => ({
    start,
    size,
    type,
    exponent,
  });
  const bad: (readonly [PaperPlan, number])[] = [
    [{ rank: 24, groups: [] }, 64],
    [{ rank: -16, groups: [] }, 64],
    [{ rank: 64, groups: [] }, 48],
    [{ rank: 16, groups: [group(0, 17)] }, 64],
    [{ rank: 16, groups: [group(0, 0)] }, 64],
    [{ rank: 16, groups: [group(0.5, 1)] }, 64],
    [{ rank: 16, groups: [group(0, 4), group(3, 4)] }, 64],
    [{ rank: 16, groups: [group(4, 4), group(0, 4)] }, 64],
    [{ rank: 16, groups: [group(0, 4, 'int2', 1)] }, 64],
    [{ rank: 16, groups: [group(0, 4, 'fp8', 101)] }, 64],
    [{ rank: 16, groups: [group(0, 4, 'toString' as GroupType)] }, 64],
  ];
  for (const [plan, maxRank] of bad) assert.notEqual(planProblem(plan, maxRank), null, JSON.stringify(plan));
  assert.equal(planProblem(examplePlan, 16), null);
});
