// Every generator and the task files, on a tokeniser of one token per character, and items through a tiny real model.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { writeTinyModel } from '../../../test/tiny-gguf.ts';
import { isKvtcError } from '../../base/errors.ts';
import { openModel } from '../../engines/llama/session.ts';
import { nativeTreatments } from '../rivals/native.ts';
import type { TaskResult } from '../run-file.ts';
import type { Treatment } from '../treatment.ts';
import { exactTreatment, floorTreatment } from '../treatment.ts';
import { taskFigures } from './figures.ts';
import { TASK_NAMES, generateTasks } from './generate.ts';
import type { TaskItem } from './item.ts';
import { createItem } from './item.ts';
import { readTaskFile } from './jsonl.ts';
import { createTaskReference, itemTokens, runTaskItem } from './run-item.ts';

const NUMBERS = ['One', 'Two', 'Three', 'Four', 'Five', 'Six', 'Seven', 'Eight', 'Nine'];
/** 81 different sentences. */
const TEXT = NUMBERS.flatMap((a) =>
  NUMBERS.map((b) => `${a} ships came into the harbour, ${b.toLowerCase()} left! Who counted?\n`),
).join('');
const TEXTS = [{ source: 'a', kind: 'one', text: TEXT }];
const tokenize = (text: string): Int32Array => Int32Array.from(text, (letter) => letter.charCodeAt(0));
const textOf = (tokens: Int32Array): string => String.fromCharCode(...tokens);

function generate(name: string, over: Partial<Parameters<typeof generateTasks>[0]> = {}): TaskItem[] {
  return generateTasks({ names: [name], texts: TEXTS, lengths: [1500], items: 5, tokenize, ...over });
}

describe('generated tasks', () => {
  for (const name of TASK_NAMES) {
    it(`${name}: equal seeds give equal items, others give others, and prefixes use the tokens they may have`, () => {
      const items = generate(name, { lengths: [900, 1500] });
      assert.equal(items.length, 10);
      assert.deepEqual(generate(name, { lengths: [900, 1500] }), items);
      assert.equal(new Set(items.map(({ sha256 }) => sha256)).size, 10);
      const other = generate(name, { seed: 8 });
      assert.ok(other.every(({ sha256 }, i) => sha256 !== items[5 + i]?.sha256));
      // Alone or among others, an item is the same.
      assert.deepEqual(generate(name, { items: 2 })[1], items[6]);
      for (const { prefix, lengthTokens } of items) {
        assert.ok(prefix.length <= lengthTokens && prefix.length > 0.85 * lengthTokens, `${prefix.length}`);
      }
    });
  }

  for (const name of ['kv', 'needle', 'multiturn', 'copy']) {
    it(`${name}: the answer stands in the prefix once, where its depth says`, () => {
      for (const { prefix, questions } of generate(name)) {
        for (const question of questions) {
          assert.ok(question.kind === 'answer' && question.depth !== null);
          const text = textOf(prefix);
          // A passage of running text may come again; the begun passage and its continuation together stand at the depth.
          const begun = name === 'copy' ? textOf(question.prompt).trimStart() : '';
          const wanted = begun + textOf(question.answer).trim();
          const found = [...text.matchAll(new RegExp(wanted.replaceAll(/[.?*+^$]/gu, '\\$&'), 'gu'))];
          assert.ok(name === 'copy' ? found.length > 0 : found.length === 1, `${found.length} × ${wanted}`);
          const nearest = Math.min(...found.map(({ index }) => Math.abs(index / text.length - (question.depth ?? 0))));
          assert.ok(nearest < 0.12, `depth ${question.depth}, off by ${nearest}`);
        }
      }
    });
  }

  it('vt: every variable of the answer holds the value, in order', () => {
    for (const { prefix, questions } of generate('vt')) {
      const [question] = questions;
      assert.ok(question?.kind === 'answer');
      const value = /value (\d+)/u.exec(textOf(question.prompt))?.[1];
      const held: string[] = [];
      for (const [, name, from] of textOf(prefix).matchAll(/VAR (\w+) = (?:VAR )?(\w+)/gu)) {
        if (from === value || held.includes(from ?? '')) held.push(name ?? '');
      }
      assert.equal(textOf(question.answer), ` ${held.join(', ')}`);
      assert.equal(held.length, 5);
    }
  });

  for (const [name, words] of [
    ['cwe', /\d+\. (\w+)/gu],
    ['fwe', /\b([a-z]{6})\b/gu],
  ] as const) {
    it(`${name}: counting the prefix gives the answer`, () => {
      for (const { prefix, questions } of generate(name)) {
        const [question] = questions;
        assert.ok(question?.kind === 'answer');
        const counts = new Map<string, number>();
        const body = textOf(prefix).split('\n\n')[1] ?? '';
        for (const [, word = ''] of body.matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1);
        const sorted = [...counts].toSorted(([, a], [, b]) => b - a);
        assert.ok((sorted[2]?.[1] ?? 0) > (sorted[3]?.[1] ?? 0), 'the third is clearly before the fourth');
        const top = sorted.slice(0, 3).map(([word]) => word);
        const wanted = name === 'fwe' ? top : [...counts.keys()].filter((word) => top.includes(word));
        assert.equal(textOf(question.answer), ` ${wanted.join(', ')}`);
      }
    });
  }

  it('multiturn: a turn repeats those before it, with their right answers', () => {
    const [item] = generate('multiturn');
    const prompts = item?.questions.map(({ prompt }) => textOf(prompt)) ?? [];
    const answers =
      item?.questions.map((question) => (question.kind === 'answer' ? textOf(question.answer) : '')) ?? [];
    assert.equal(prompts.length, 4);
    for (let turn = 1; turn < 4; turn++) {
      assert.ok(prompts[turn]?.startsWith(`${prompts[turn - 1]}${answers[turn - 1]}.`));
    }
    assert.equal(new Set(answers).size, 4);
  });

  it('refuse unknown names, no text, depths outside the prefix and lengths that nothing fits in', () => {
    for (const [over, code] of [
      [{ names: ['kw'] }, 'KVTC_OPTION_INVALID'],
      [{ names: ['kv', 'kv'] }, 'KVTC_OPTION_INVALID'],
      [{ texts: [] }, 'KVTC_PROMPT_EMPTY'],
      [{ texts: [{ source: 'e', kind: 'k', text: '' }] }, 'KVTC_PROMPT_EMPTY'],
      [{ depths: [1.5] }, 'KVTC_OPTION_INVALID'],
      [{ lengths: [0] }, 'KVTC_OPTION_INVALID'],
      [{ lengths: [40] }, 'KVTC_OPTION_INVALID'],
      [{ names: ['copy'], lengths: [40] }, 'KVTC_OPTION_INVALID'],
      [{ items: 0 }, 'KVTC_OPTION_INVALID'],
    ] as const) {
      assert.throws(
        () => generate('kv', over),
        (error) => isKvtcError(error, code),
        JSON.stringify(over),
      );
    }
  });
});

describe('the page on tasks', () => {
  it('names every task, and its examples are task lines', async () => {
    const page = await readFile(new URL('../../../docs/tasks.md', import.meta.url), 'utf8');
    for (const name of TASK_NAMES) assert.ok(page.includes(`| \`${name}\` |`), name);
    const examples = [...page.matchAll(/```json\n(.+)\n```/gu)].map(([, example = '']) => example);
    assert.equal(examples.length, 3);
    const folder = await mkdtemp(join(tmpdir(), 'kvtc-page-'));
    try {
      await writeFile(join(folder, 'page.jsonl'), examples.join('\n'));
      const items = await readTaskFile(join(folder, 'page.jsonl'), tokenize);
      assert.deepEqual(
        items.map(({ kind }) => kind),
        ['gsm8k', 'mmlu', 'contract'],
      );
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe('task files', () => {
  let folder = '';
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kvtc-tasks-'));
  });
  after(() => rm(folder, { recursive: true }));

  it('give exact match and multiple choice, lines with one prefix as one item', async () => {
    const path = join(folder, 'mmlu.jsonl');
    const lines = [
      { prefix: 'few shots', question: 'Q1 Answer:', choices: [' A', ' B'], correct: 1 },
      { prefix: 'other', question: 'Q2', answer: ' 72', task: 'gsm8k' },
      { prefix: 'few shots', questions: [{ question: 'Q3', answer: ' x' }] },
    ];
    await writeFile(path, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n\n`);
    const items = await readTaskFile(path, tokenize);
    assert.deepEqual(
      items.map(({ kind, source, questions }) => [kind, source, questions.map((question) => question.kind)]),
      [
        ['mmlu', 'mmlu.jsonl:1', ['choices', 'answer']],
        ['gsm8k', 'mmlu.jsonl:2', ['answer']],
      ],
    );
  });

  it('are refused with the line that is none', async () => {
    const path = join(folder, 'bad.jsonl');
    for (const line of [
      '{',
      '[]',
      '{"prefix":"p","question":"q"}',
      '{"prefix":"p","question":"q","answer":"a","more":1}',
      '{"prefix":"p","question":"q","choices":["a"],"correct":0}',
      '{"prefix":"p","question":"q","choices":["a","b"],"correct":2}',
      '{"prefix":"","question":"q","answer":"a"}',
      '{"prefix":"p","question":"","answer":"a"}',
      '{"prefix":"p","question":"q","answer":""}',
      `{"prefix":"p","question":"q","answer":"${'a'.repeat(513)}"}`,
      '',
    ]) {
      await writeFile(path, `${line}\n`);
      await assert.rejects(readTaskFile(path, tokenize), (error) => isKvtcError(error, 'KVTC_TASK_MALFORMED'), line);
    }
    await assert.rejects(readTaskFile(join(folder, 'none.jsonl'), tokenize), (error) =>
      isKvtcError(error, 'KVTC_FILE_NOT_FOUND'),
    );
  });
});

describe('items on a tiny model', () => {
  let folder = '';
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'kvtc-items-'));
  });
  after(() => rm(folder, { recursive: true }));

  it('asks exact and treated caches alike; what the exact cache fails is left out; the engine’s own types run', async () => {
    const path = join(folder, 'tiny.gguf');
    await writeTinyModel(path, 'llama', { headDim: 64, heads: 2, layers: 2 });
    const model = await openModel(path, { threads: 1 });
    try {
      const options = { contextTokens: 768, batchTokens: 512 };
      const context = await model.createContext(options);
      const encode = (text: string): Int32Array => model.tokenize(text, { addSpecial: false });
      const made = generateTasks({ names: ['kv', 'greedy'], texts: TEXTS, lengths: [400], items: 1, tokenize: encode });
      const prefix = encode(TEXT).slice(0, 300);
      const choice = createItem({
        kind: 'mine',
        source: 'test',
        prefix,
        lengthTokens: 300,
        questions: [
          { kind: 'choices', prompt: encode('a'), choices: [encode(' one'), encode(' two')], correct: 0, depth: null },
          { kind: 'choices', prompt: encode('a'), choices: [encode(' one'), encode(' two')], correct: 1, depth: null },
        ],
      });
      const items = [...made, choice];
      const native = nativeTreatments({ model, context: options });
      assert.deepEqual(
        native.map(({ label }) => label),
        ['q8_0', 'q5_1', 'q4_1', 'q4_0'].map((type) => `${type} native, rotated`),
      );
      const treatments: Treatment[] = [
        exactTreatment,
        { ...exactTreatment, label: 'again' },
        floorTreatment,
        ...native,
      ];
      const results = new Map<string, TaskResult[]>(treatments.map(({ label }) => [label, []]));
      for (const item of items) {
        let decoded = 0;
        await runTaskItem(item, treatments, {
          context,
          reference: createTaskReference(items, model.vocabSize),
          onDecoded: (tokens) => (decoded += tokens),
          onResult: async (treatment, result) => void results.get(treatment.label)?.push(result),
        });
        assert.equal(decoded, itemTokens(item, treatments.length, native.length), item.kind);
      }
      const of = (label: string) => taskFigures(results.get(label) ?? []);
      const { kv, greedy, mine } = of('exact');

      assert.deepEqual(of('again'), of('exact'), 'a state seen before has the scores it had');
      assert.deepEqual([kv?.questions, kv?.exactCorrect, kv?.accuracy, kv?.klNats], [1, 0, null, null]);
      // One batch of 64 rounds otherwise than 64 of one, which may flip a near tie of a random model, late and seldom.
      const [written] = results.get('exact')?.[1]?.questions ?? [];
      assert.ok((written?.leadingTokens ?? 0) > 8 && written?.answerTokens === 64 && greedy?.questions === 1);
      assert.deepEqual([written.scores.klSum, written.correct], [0, written.correctExact]);
      assert.deepEqual([mine?.questions, mine?.exactCorrect, mine?.correct], [2, 1, 1]);
      assert.deepEqual(
        kv?.cells.map(({ lengthTokens, depth }) => [lengthTokens, depth]),
        [[400, 0.1]],
      );
      const kl = (label: string): number => results.get(label)?.[1]?.questions[0]?.scores.klSum ?? NaN;
      assert.ok(kl('floor') > 0 && kl('floor') < kl('q8_0 native, rotated'));
      assert.ok(kl('q8_0 native, rotated') < kl('q4_0 native, rotated'));
      const [q4] = results.get('q4_0 native, rotated') ?? [];
      assert.ok(Math.abs((q4?.paperRatio ?? 0) - 32 / 9) < 1e-9 && q4?.paperRatio === q4?.effectiveRatio);
      const plain = nativeTreatments({ model, context: options, types: ['q4_0'], rotated: false });
      assert.equal(plain[0]?.label, 'q4_0 native, not rotated');
      let plainKl = NaN;
      await runTaskItem(items[1] as TaskItem, plain, {
        context,
        reference: createTaskReference(items, model.vocabSize),
        onDecoded: () => undefined,
        onResult: async (_, result) => void (plainKl = result.questions[0]?.scores.klSum ?? NaN),
      });
      assert.ok(plainKl > 0 && plainKl !== kl('q4_0 native, rotated'), 'the switch reaches the engine');
      assert.equal(process.env['LLAMA_ATTN_ROT_DISABLE'], undefined);
    } finally {
      model.close();
    }
  });

  it('refuses the engine’s types for heads that blocks do not divide', async () => {
    const path = join(folder, 'odd.gguf');
    await writeTinyModel(path, 'llama');
    const model = await openModel(path, { threads: 1 });
    try {
      assert.throws(
        () => nativeTreatments({ model, context: { contextTokens: 256 } }),
        (error) => isKvtcError(error, 'KVTC_MODEL_UNSUPPORTED'),
      );
    } finally {
      model.close();
    }
  });
});
