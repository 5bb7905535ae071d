// Command line words → Arguments of a verb, by its syntax; and the verb's help page from the same data.
// Does not know: any particular verb.

import { parseArgs } from 'node:util';
import { KvtcError } from '../base/errors.ts';
import type { Arguments, OptionSpec, Syntax } from './verb.ts';

const COMMON: Readonly<Record<string, OptionSpec>> = {
  json: { help: 'print one JSON object on stdout, and nothing but it' },
  help: { short: 'h', help: 'show this page' },
};

/** Throws KVTC_OPTION_INVALID for unknown, missing or surplus words. */
export function parseArguments(verb: string, syntax: Syntax, words: readonly string[]): Arguments {
  const specs = { ...syntax.options, ...COMMON };
  const invalid = (message: string, cause?: unknown): KvtcError =>
    new KvtcError('KVTC_OPTION_INVALID', `${message}; see: kvtc ${verb} --help`, { verb }, { cause });
  let parsed;
  try {
    parsed = parseArgs({
      args: [...words],
      strict: true,
      allowPositionals: true,
      tokens: true,
      options: Object.fromEntries(
        Object.entries(specs).map(([name, spec]) => [
          name,
          {
            type: spec.value === undefined ? ('boolean' as const) : ('string' as const),
            multiple: true,
            ...(spec.short === undefined ? {} : { short: spec.short }),
          },
        ]),
      ),
    });
  } catch (error) {
    const message = error instanceof Error ? (error.message.split('. ')[0] ?? '') : String(error);
    throw invalid(message, error);
  }
  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  let greedy: string[] | null = null;
  for (const token of parsed.tokens) {
    if (token.kind === 'option') {
      const list = values.get(token.name) ?? [];
      values.set(token.name, list);
      list.push(token.value ?? '');
      greedy = specs[token.name]?.many === true ? list : null;
    } else if (token.kind === 'positional') {
      (greedy ?? positionals).push(token.value);
    } else {
      greedy = null;
    }
  }
  for (const [name, list] of values) {
    if (specs[name]?.many !== true && list.length > 1) throw invalid(`--${name} is given ${list.length} times`);
  }
  const args = readers(values, positionals, invalid);
  if (args.has('help')) return args;
  for (const [name, spec] of Object.entries(specs)) {
    if (spec.required === true && !values.has(name))
      throw invalid(`--${name} ${spec.value ?? ''}`.trimEnd() + ' is missing');
  }
  const wanted = syntax.positionals;
  if (positionals.length < wanted.length) throw invalid(`${wanted[positionals.length]?.name} is missing`);
  if (positionals.length > wanted.length) throw invalid(`"${positionals[wanted.length]}" is one word too many`);
  return args;
}

function readers(
  values: ReadonlyMap<string, readonly string[]>,
  positionals: readonly string[],
  invalid: (message: string) => KvtcError,
): Arguments {
  const text = (name: string): string | undefined => values.get(name)?.[0];
  const number = (name: string, word: string, good: (value: number) => boolean, what: string): number => {
    const value = word.trim() === '' ? Number.NaN : Number(word);
    if (!good(value)) throw invalid(`--${name} is "${word}", expected ${what}`);
    return value;
  };
  const isPositive = (value: number): boolean => Number.isFinite(value) && value > 0;
  return {
    positionals,
    has: (name) => values.has(name),
    text,
    texts: (name) => values.get(name) ?? [],
    integer: (name, minimum) => {
      const word = text(name);
      if (word === undefined) return undefined;
      const good = (value: number): boolean => Number.isSafeInteger(value) && value >= minimum;
      return number(name, word, good, `a whole number from ${minimum}`);
    },
    positive: (name) => {
      const word = text(name);
      return word === undefined ? undefined : number(name, word, isPositive, 'a number above 0');
    },
    positives: (name) =>
      text(name)
        ?.split(',')
        .map((word) => number(name, word, isPositive, 'numbers above 0 with commas between')),
    choice: <T extends string>(name: string, choices: readonly T[]): T | undefined => {
      const word = text(name);
      const found = choices.find((choice) => choice === word);
      if (word !== undefined && found === undefined) {
        throw invalid(`--${name} is "${word}", expected ${choices.join(' or ')}`);
      }
      return found;
    },
    words: (name) => text(name)?.split(','),
    choices: <T extends string>(name: string, choices: readonly T[]): readonly T[] | undefined =>
      text(name)
        ?.split(',')
        .map((word) => {
          const found = choices.find((choice) => choice === word);
          if (found === undefined) {
            throw invalid(`--${name} holds "${word}", expected some of ${choices.join(', ')} with commas between`);
          }
          return found;
        }),
  };
}

/** The verb's help page. */
export function verbHelp(verb: string, syntax: Syntax): string {
  const specs = Object.entries({ ...syntax.options, ...COMMON });
  const flag = (name: string, spec: OptionSpec): string => {
    const value = spec.value === undefined ? '' : ` ${spec.value}${spec.many === true ? '...' : ''}`;
    return name.length === 1 ? `-${name}${value}` : `--${name}${value}`;
  };
  const usage = [
    'kvtc',
    verb,
    ...syntax.positionals.map(({ name }) => name),
    ...specs.filter(([, spec]) => spec.required === true).map(([name, spec]) => flag(spec.short ?? name, spec)),
    '[options]',
  ].join(' ');
  const rows = [
    ...syntax.positionals.map(({ name, help }) => [name, help] as const),
    ...specs.map(([name, spec]) => {
      const label = `${spec.short === undefined ? '' : `-${spec.short}, `}${flag(name, spec)}`;
      return [label, spec.help + (spec.fallback === undefined ? '' : ` [${spec.fallback}]`)] as const;
    }),
  ];
  const width = Math.max(...rows.map(([label]) => label.length));
  const lines = rows.map(([label, help]) => `  ${label.padEnd(width)}  ${help}`);
  const details = syntax.details === undefined ? [] : ['', syntax.details];
  return [`${syntax.summary}.`, '', `usage: ${usage}`, '', ...lines, ...details].join('\n');
}
