// Tasks that ask for something said once in a long prefix: key-value pairs, a needle in running text, several questions
// one after the other. Does not know: tokens, engines.
// Sources: key-value retrieval after Liu et al., Lost in the Middle (arXiv 2307.03172); needles after RULER (2404.06654).

import type { Random } from '../../base/random.ts';
import type { TaskSource, TaskText } from './item.ts';
import { fitUnits, piecesFrom } from './item.ts';
import { pseudoWord } from './words.ts';

const LEAST_PAIRS = 4;
const TURNS = 4;

/** JSON pairs of random hex keys and values fill the prefix; one value is asked for. */
export function keyValueTask(source: TaskSource): TaskText {
  const { random, depth } = source;
  const pairs: (readonly [key: string, value: string])[] = [];
  const build = (units: number): string => {
    while (pairs.length < units) pairs.push([hexWord(random), hexWord(random)]);
    const body = pairs.slice(0, units).map(([key, value]) => `"${key}": "${value}"`);
    return `Extract the value for a key from this JSON object.\n\n{${body.join(', ')}}\n`;
  };
  const units = fitUnits(source, LEAST_PAIRS, build);
  const asked = Math.round(depth * (units - 1));
  const [key, value] = pairs[asked] ?? ['', ''];
  return {
    prefix: build(units),
    questions: [{ prompt: `\nKey: "${key}"\nValue: "`, answer: value, depth: asked / (units - 1) }],
  };
}

/** One sentence with a number, at a depth of running text. */
export function needleTask(source: TaskSource): TaskText {
  const { random, haystack, depth } = source;
  const name = pseudoWord(random, 3);
  const number = digits(random, 7);
  const start = random.below(haystack.pieces.length);
  const build = hide(source, start, [{ depth, sentence: `The secret number of ${name} is ${number}.` }]);
  return {
    prefix: build(fitUnits(source, 1, build)),
    questions: [
      {
        prompt: `\n\nQuestion: What is the secret number of ${name}?\nAnswer: The secret number of ${name} is`,
        answer: ` ${number}`,
        depth,
      },
    ],
  };
}

/** Four facts spread over running text, asked for one after the other in an order of their own: each turn sees the earlier ones. */
export function multiTurnTask(source: TaskSource): TaskText {
  const { random, haystack } = source;
  const facts = Array.from({ length: TURNS }, (_, i) => ({
    name: pseudoWord(random, 3),
    number: digits(random, 5),
    depth: (i + 0.5) / TURNS,
  }));
  const hidden = facts.map(({ name, number, depth }) => ({
    depth,
    sentence: `The locker of ${name} opens with ${number}.`,
  }));
  const build = hide(source, random.below(haystack.pieces.length), hidden);
  const first = random.below(TURNS);
  let history = '\n';
  const questions = Array.from({ length: TURNS }, (_, turn) => {
    // 3 has no common factor with 4: every fact is asked for once, and neighbours are not neighbours in the text.
    const { name, number, depth } = facts[(first + 3 * turn) % TURNS] ?? facts[0]!;
    const prompt = `${history}\nQuestion: What opens the locker of ${name}?\nAnswer: The locker of ${name} opens with`;
    history = `${prompt} ${number}.`;
    return { prompt, answer: ` ${number}`, depth };
  });
  return { prefix: build(fitUnits(source, TURNS, build)), questions };
}

/** Running text with sentences between its pieces, each on a line of its own. */
function hide(
  { haystack }: TaskSource,
  start: number,
  hidden: readonly { readonly depth: number; readonly sentence: string }[],
): (units: number) => string {
  return (units) => {
    const pieces = piecesFrom(haystack, start, units);
    for (const { depth, sentence } of hidden.toReversed()) {
      const at = Math.round(depth * units);
      pieces.splice(at, 0, `\n${sentence}\n`);
    }
    return pieces.join('');
  };
}

function hexWord(random: Random): string {
  return Math.floor(random.uniform() * 2 ** 32)
    .toString(16)
    .padStart(8, '0');
}

/** A number of so many digits, the first one not 0. */
function digits(random: Random, count: number): string {
  return Array.from({ length: count }, (_, i) => (i === 0 ? 1 + random.below(9) : random.below(10))).join('');
}
