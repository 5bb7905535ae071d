import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { isKvtcError } from '../src/base/errors.ts';
import { unpackFamily } from '../src/codec/wtc/family.ts';
import { createWtcPlan } from '../src/codec/wtc/plan.ts';
import { decodeWtcChunk } from '../src/codec/wtc/wtc-codec.ts';

interface Case {
  readonly name: string;
  readonly scales: readonly number[];
  readonly parameters: { readonly stepIndex: number; readonly rank: number; readonly cut: number };
  readonly tokens: number;
  readonly tokenClasses: readonly number[];
  readonly chunk: string;
  readonly sha256: string;
}

const folder = join(import.meta.dirname, 'golden', 'wtc');
const decoder = join(import.meta.dirname, '..', 'reference', 'wtc.py');
const familyPath = join(folder, 'family.f32');
const packed = new Float32Array(new Uint8Array(await readFile(familyPath)).buffer);
const cases = JSON.parse(await readFile(join(folder, 'cases.json'), 'utf8')) as Case[];

test('there are golden chunks of the codec wtc', () => {
  assert.ok(cases.length >= 6);
});

async function byReference(one: Case): Promise<{ sha256: string; tokenClasses: number[] }> {
  const scratch = await mkdtemp(join(tmpdir(), 'kvtc-wtc-'));
  try {
    const path = join(scratch, 'case.json');
    await writeFile(path, JSON.stringify(one));
    const { stdout } = await promisify(execFile)('python3', [decoder, familyPath, path]);
    return JSON.parse(stdout) as { sha256: string; tokenClasses: number[] };
  } finally {
    await rm(scratch, { recursive: true });
  }
}

for (const one of cases) {
  const plan = createWtcPlan(one.parameters, {
    scales: Int16Array.from(one.scales),
    family: unpackFamily(packed, 'golden'),
  });

  test(`the golden chunk "${one.name}" decodes to what it always did`, () => {
    const out = new Float32Array(one.tokens * plan.rank);
    const classes = decodeWtcChunk(Buffer.from(one.chunk, 'hex'), one.tokens, plan, out);
    assert.deepEqual([...classes], one.tokenClasses);
    assert.equal(createHash('sha256').update(new Uint8Array(out.buffer)).digest('hex'), one.sha256);
  });

  test(`the reference decoder agrees on "${one.name}"`, async () => {
    assert.deepEqual(await byReference(one), { sha256: one.sha256, tokenClasses: one.tokenClasses });
  });
}

test('product and reference decoder refuse the same damaged chunk', async () => {
  const one = cases[1] as Case;
  const chunk = `${one.chunk.slice(0, -4)}${one.chunk.endsWith('0000') ? 'ffff' : '0000'}`;
  const plan = createWtcPlan(one.parameters, {
    scales: Int16Array.from(one.scales),
    family: unpackFamily(packed, 'golden'),
  });
  const out = new Float32Array(one.tokens * plan.rank);
  assert.throws(
    () => decodeWtcChunk(Buffer.from(chunk, 'hex'), one.tokens, plan, out),
    (error) => isKvtcError(error, 'KVTC_CHUNK_MALFORMED'),
  );
  await assert.rejects(byReference({ ...one, chunk }), (error: { code?: number }) => error.code === 3);
});
