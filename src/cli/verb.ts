// What a verb of the command line is: its syntax as data, and a function from arguments to an outcome.
// Does not know: which verbs there are, how outcomes reach the terminal.

import type { RunOptions } from '../base/events.ts';

export interface OptionSpec {
  /** Name of the value in help, such as `FILE`; options without one are switches. */
  readonly value?: string;
  readonly short?: string;
  /** May be given several times, and takes all words up to the next option. */
  readonly many?: boolean;
  readonly required?: boolean;
  /** Shown in help; the verb's library function applies it. */
  readonly fallback?: string;
  readonly help: string;
}

export interface Syntax {
  /** One line. */
  readonly summary: string;
  readonly positionals: readonly { readonly name: string; readonly help: string }[];
  readonly options: Readonly<Record<string, OptionSpec>>;
  /** Further paragraphs and examples for the verb's help. */
  readonly details?: string;
}

/** Parsed arguments of one call. Getters throw KVTC_OPTION_INVALID for values of the wrong form. */
export interface Arguments {
  readonly positionals: readonly string[];
  has(name: string): boolean;
  text(name: string): string | undefined;
  texts(name: string): readonly string[];
  integer(name: string, minimum: number): number | undefined;
  positive(name: string): number | undefined;
  /** Comma-separated positive numbers. */
  positives(name: string): readonly number[] | undefined;
  choice<T extends string>(name: string, choices: readonly T[]): T | undefined;
  /** Comma-separated words, of `choices` where these are given. */
  words(name: string): readonly string[] | undefined;
  choices<T extends string>(name: string, choices: readonly T[]): readonly T[] | undefined;
}

/** `json` is the one object `--json` prints; `text` is for people, without a line feed at the end. */
export interface Outcome {
  readonly json: Readonly<Record<string, unknown>>;
  readonly text: string;
}

export interface VerbContext extends Required<RunOptions> {
  readonly signal: AbortSignal;
  /** Writes to stdout before the outcome is there, for text that grows; does nothing with `--json`. */
  readonly print: (text: string) => void;
}

export interface Verb {
  readonly syntax: Syntax;
  run(args: Arguments, context: VerbContext): Promise<Outcome>;
}
