// Tasks that need the whole prefix, not one place of it: variable tracking, common-word and frequent-word extraction.
// Does not know: tokens, engines. Source: RULER (arXiv 2404.06654), restated; answers have one right order here, so that
// exact match is defined.

import type { Random } from '../../base/random.ts';
import { seededRandom, shuffled } from '../../base/random.ts';
import type { TaskSource, TaskText } from './item.ts';
import { fitUnits, piecesFrom } from './item.ts';

const HOPS = 4;
const COMMON_WORDS = 3;
/** Each common word stands this much more often than any other. */
const COMMON_FACTOR = 4;
const FREQUENT_WORDS = 3;
const CODED_WORDS = 40;

const CONSONANTS = 'bdfgklmnprstvz';
const VOWELS = 'aeiou';

/** A word of so many syllables that no text holds. */
export function pseudoWord(random: Random, syllables: number): string {
  const letter = (letters: string): string => letters[random.below(letters.length)] ?? '';
  return Array.from({ length: syllables }, () => letter(CONSONANTS) + letter(VOWELS)).join('');
}

/** A value is handed from variable to variable between pieces of running text; all its holders are asked for, in order. */
export function variableTask(source: TaskSource): TaskText {
  const { random, haystack } = source;
  const names = differentWords(HOPS + 1, () => pseudoWord(random, 2).toUpperCase());
  const value = 10_000 + random.below(90_000);
  const lines = names.map((name, i) => `VAR ${name} = ${i === 0 ? value : `VAR ${names[i - 1]}`}`);
  const start = random.below(haystack.pieces.length);
  const build = (units: number): string => {
    const pieces = piecesFrom(haystack, start, units);
    for (let i = HOPS; i >= 0; i--) pieces.splice(Math.round(((i + 0.5) / (HOPS + 1)) * units), 0, `\n${lines[i]}\n`);
    return pieces.join('');
  };
  return {
    prefix: build(fitUnits(source, HOPS + 1, build)),
    questions: [
      {
        prompt:
          `\n\nQuestion: Which variables hold the value ${value}, in the order of their assignment?\n` +
          `Answer: ${HOPS + 1} variables hold the value ${value}:`,
        answer: ` ${names.join(', ')}`,
        depth: null,
      },
    ],
  };
}

/** A numbered list in which three words stand four times as often as the others; they are asked for by first appearance. */
export function commonWordsTask(source: TaskSource): TaskText {
  const { random, haystack } = source;
  const seed = random.below(2 ** 30);
  const pool = shuffled(haystack.words, random);
  // Texts with few words are filled up, so that every length has enough that are rare.
  const word = (i: number): string => {
    while (pool.length <= i) pool.push(...differentWords(1, () => pseudoWord(random, 3)));
    return pool[i] ?? '';
  };
  const listOf = (units: number): string[] => {
    const counts = spread(units);
    const list = counts.flatMap((count, i) => Array.from({ length: count }, () => word(i)));
    return shuffled(list, streamOf(seed, units));
  };
  const build = (units: number): string =>
    `Below is a numbered list of words. Some of them appear more often than others.\n\n${listOf(units)
      .map((entry, i) => `${i + 1}. ${entry}`)
      .join(' ')}\n`;
  const units = fitUnits(source, 4 * COMMON_WORDS * COMMON_FACTOR, build);
  const common = new Set(Array.from({ length: COMMON_WORDS }, (_, i) => word(i)));
  const ordered = [...new Set(listOf(units))].filter((entry) => common.has(entry));
  return {
    prefix: build(units),
    questions: [
      {
        prompt:
          `\nQuestion: What are the ${COMMON_WORDS} most common words in the list, in the order they first appear?\n` +
          `Answer: The ${COMMON_WORDS} most common words are`,
        answer: ` ${ordered.join(', ')}`,
        depth: null,
      },
    ],
  };
}

/** How often each word stands in a list of `units` entries: the common ones first, each COMMON_FACTOR times the others. */
function spread(units: number): number[] {
  const rare = Math.max(1, Math.floor(units / (8 * COMMON_WORDS * COMMON_FACTOR)));
  const counts = Array.from({ length: COMMON_WORDS }, () => rare * COMMON_FACTOR);
  let left = units - COMMON_WORDS * rare * COMMON_FACTOR;
  for (; left > 0; left -= rare) counts.push(Math.min(rare, left));
  return counts;
}

/** Made-up words whose frequency falls with the square of their rank; the three most frequent are asked for. */
export function frequentWordsTask(source: TaskSource): TaskText {
  const { random } = source;
  const seed = random.below(2 ** 30);
  const words = differentWords(CODED_WORDS, () => pseudoWord(random, 3));
  const weight = words.reduce((sum, _, i) => sum + (i + 1) ** -2, 0);
  const build = (units: number): string => {
    const list = words.flatMap((word, i) =>
      Array.from({ length: Math.ceil(((i + 1) ** -2 * units) / weight) }, () => word),
    );
    return `Read the following coded text and track how often each coded word appears.\n\n${shuffled(
      list,
      streamOf(seed, units),
    ).join(' ')}\n`;
  };
  return {
    prefix: build(fitUnits(source, 32, build)),
    questions: [
      {
        prompt:
          `\nQuestion: What are the ${FREQUENT_WORDS} most frequent words in the coded text above, most frequent first?\n` +
          `Answer: The ${FREQUENT_WORDS} most frequent words are`,
        answer: ` ${words.slice(0, FREQUENT_WORDS).join(', ')}`,
        depth: null,
      },
    ],
  };
}

/** A shuffle for each length, so that building at one length changes nothing at another. */
function streamOf(seed: number, units: number): Random {
  return seededRandom(seed + units);
}

function differentWords(count: number, draw: () => string): string[] {
  const words = new Set<string>();
  while (words.size < count) words.add(draw());
  return [...words];
}
