// The cases of the conformance suite: layouts, rotations, sizes at the edges of blocks and slices, awkward contents.
// Not part of the library; imported by the suite alone.

import type { Random } from '../base/random.ts';
import type { RopeDescription } from '../rope/description.ts';
import type { Precision, RowLayout } from './backend.ts';

export const plain: RopeDescription = {
  pairing: 'interleaved',
  dims: 8,
  frequencyBase: 10_000,
  frequencyScale: 1,
  extFactor: 0,
  attnFactor: 1,
  betaFast: 32,
  betaSlow: 1,
  originalContext: 4096,
  frequencyFactors: null,
};

export interface Case {
  readonly name: string;
  readonly layout: RowLayout;
  readonly rope: RopeDescription | null;
  readonly tokens: number;
  readonly rank: number;
  readonly content?: (random: Random, index: number) => number;
  readonly precisions?: readonly Precision[];
}

export function layout(
  layers: number,
  heads: number,
  headDim: number,
  element: RowLayout['element'] = 'f16',
): RowLayout {
  return { layers, heads, headDim, element };
}

export const CASES: readonly Case[] = [
  { name: 'one value', layout: layout(1, 1, 1), rope: null, tokens: 1, rank: 1 },
  { name: 'one token', layout: layout(2, 3, 8), rope: plain, tokens: 1, rank: 16 },
  { name: 'width no multiple of 32', layout: layout(3, 1, 10), rope: { ...plain, dims: 10 }, tokens: 7, rank: 5 },
  { name: 'rank no multiple of 32', layout: layout(2, 2, 16), rope: { ...plain, dims: 16 }, tokens: 33, rank: 33 },
  { name: 'rank one under a block', layout: layout(5, 3, 20), rope: { ...plain, dims: 20 }, tokens: 31, rank: 31 },
  { name: 'a full slice of tokens', layout: layout(2, 2, 32), rope: { ...plain, dims: 32 }, tokens: 256, rank: 64 },
  { name: 'one token past a slice', layout: layout(2, 2, 32), rope: { ...plain, dims: 32 }, tokens: 257, rank: 64 },
  { name: 'three slices', layout: layout(3, 1, 8), rope: plain, tokens: 700, rank: 24 },
  { name: 'rank of the whole width', layout: layout(4, 2, 16), rope: { ...plain, dims: 16 }, tokens: 40, rank: 128 },
  {
    name: 'half-split',
    layout: layout(2, 2, 64),
    rope: { ...plain, pairing: 'half-split', dims: 64 },
    tokens: 20,
    rank: 48,
  },
  { name: 'partial dims', layout: layout(2, 2, 32), rope: { ...plain, dims: 12 }, tokens: 20, rank: 48 },
  {
    name: 'partial dims, half-split',
    layout: layout(2, 2, 32),
    rope: { ...plain, pairing: 'half-split', dims: 12 },
    tokens: 20,
    rank: 48,
  },
  {
    name: 'frequency factors',
    layout: layout(2, 2, 8),
    rope: { ...plain, frequencyFactors: [1, 1.5, 4, 8] },
    tokens: 20,
    rank: 16,
  },
  { name: 'linear scaling', layout: layout(2, 2, 8), rope: { ...plain, frequencyScale: 0.25 }, tokens: 20, rank: 16 },
  { name: 'attention factor', layout: layout(2, 2, 8), rope: { ...plain, attnFactor: 1.3 }, tokens: 20, rank: 16 },
  {
    name: 'YaRN',
    layout: layout(2, 2, 64),
    rope: { ...plain, pairing: 'half-split', dims: 64, frequencyScale: 0.25, extFactor: 1, attnFactor: 0.9 },
    tokens: 50,
    rank: 64,
  },
  { name: 'bf16 rows', layout: layout(3, 2, 32, 'bf16'), rope: { ...plain, dims: 32 }, tokens: 37, rank: 64 },
  { name: 'f32 rows', layout: layout(3, 2, 32, 'f32'), rope: { ...plain, dims: 32 }, tokens: 37, rank: 64 },
  { name: 'zero rows', layout: layout(2, 2, 32), rope: { ...plain, dims: 32 }, tokens: 9, rank: 32, content: () => 0 },
  {
    name: 'a constant channel',
    layout: layout(2, 2, 32),
    rope: null,
    tokens: 40,
    rank: 32,
    content: (random, i) => (i % 32 === 3 ? 1.5 : random.normal()),
  },
  {
    name: 'largest f16 values',
    layout: layout(2, 1, 32),
    rope: null,
    tokens: 12,
    rank: 32,
    content: (random) => (random.uniform() < 0.5 ? -65_504 : 65_504),
    precisions: ['f32'],
  },
  {
    name: 'f16 denormals',
    layout: layout(2, 1, 32),
    rope: null,
    tokens: 12,
    rank: 32,
    content: (random) => (random.below(2047) - 1023) * 2 ** -24,
    precisions: ['f32'],
  },
];
