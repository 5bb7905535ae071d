// kvtc inspect: what a file is, what made it, and where every byte goes.

import type { InspectedContainer, InspectedGguf, InspectedProfile } from '../../cache/inspect.ts';
import { streamWidth, type CacheGeometry, type TokenRange } from '../../base/geometry.ts';
import {
  bytesTable,
  formatBytes,
  formatCount,
  formatPercent,
  formatRatio,
  formatSmall,
  profileSizeText,
  ratiosText,
  table,
} from '../format.ts';
import type { Verb } from '../verb.ts';

export const verb: Verb = {
  syntax: {
    summary: 'Describe a container, profile or GGUF model and account for every byte',
    positionals: [{ name: 'FILE', help: 'a .kvtc container, a profile or a GGUF model' }],
    options: {},
  },
  async run(args) {
    const { inspect } = await import('../../cache/inspect.ts');
    const found = await inspect(args.positionals[0] ?? '');
    const lines =
      found.kind === 'container'
        ? containerLines(found)
        : found.kind === 'profile'
          ? profileLines(found)
          : ggufLines(found);
    const parts = found.parts.map(({ name, count, byteLength }) => ({
      name: count === 1 ? name : `${name} (${formatCount(count)})`,
      byteLength,
    }));
    return { json: { ...found }, text: [...lines, '', bytesTable(parts, found.byteLength)].join('\n') };
  },
};

function facts(rows: readonly (readonly [string, string])[]): string {
  return table(rows, ['left', 'left']);
}

function geometryText({ layers, kvHeads, keyHeadDim, valueHeadDim }: CacheGeometry): string {
  const dims = keyHeadDim === valueHeadDim ? `${keyHeadDim}` : `${keyHeadDim} (keys) and ${valueHeadDim} (values)`;
  return `${layers} layers of ${kvHeads} KV heads of ${dims}`;
}

type Rope = NonNullable<InspectedGguf['model']>['rope'];

function ropeText({ pairing, dims, frequencyBase, frequencyScale, extFactor, frequencyFactors }: Rope): string {
  const scaling = [
    ...(frequencyScale === 1 ? [] : [`frequencies times ${Number(frequencyScale.toPrecision(4))}`]),
    ...(extFactor === 0 ? [] : ['YaRN']),
    ...(frequencyFactors === null ? [] : ['a factor for each pair']),
  ].join(', ');
  return `${pairing} pairs in ${dims} dims, base ${formatCount(frequencyBase)}, ${scaling || 'no scaling'}`;
}

function ggufLines(found: InspectedGguf): string[] {
  const { model } = found;
  const rows: [string, string][] =
    model === null
      ? [['not handled', found.refusal ?? '']]
      : [
          ['model', `${model.name} (${model.architecture}), ${model.fingerprint.slice(0, 12)}`],
          [
            'cache',
            `${geometryText(model.geometry)}, ${formatBytes(cacheTokenBytes(model.geometry))} a token at 16 bit`,
          ],
          ['RoPE', ropeText(model.rope)],
        ];
  rows.push(['metadata', `${formatCount(found.metadataCount)} keys`], ['tensors', formatCount(found.tensorCount)]);
  return [`${found.path}: GGUF model, version ${found.version}, ${formatBytes(found.byteLength)}`, '', facts(rows)];
}

function cacheTokenBytes(geometry: CacheGeometry): number {
  return 2 * (streamWidth(geometry, 'key') + streamWidth(geometry, 'value'));
}

function containerLines(found: InspectedContainer): string[] {
  const { header } = found;
  const range = ({ startToken, endToken }: TokenRange): string => `[${startToken}, ${endToken})`;
  const exact = header.exactRanges.map(range).join(' ') || 'none';
  const types = header.elementTypes;
  return [
    `${found.path}: kvtc container, format ${found.version}, ${formatBytes(found.byteLength)}`,
    '',
    facts([
      ['model', `${header.model.name} (${header.model.architecture}), ${header.model.fingerprint.slice(0, 12)}`],
      ['cache', `${geometryText(header.model.geometry)}, keys ${types.key}, values ${types.value}`],
      ['profile', header.profileId.slice(0, 12)],
      ['codec', `${header.codec}, entropy coder ${header.entropy}`],
      ['written by', [header.producer, header.engine].filter(Boolean).join(', ')],
      ['tokens', `${formatCount(header.tokenCount)}, ids ${found.hasTokens ? 'stored' : 'not stored'}`],
      ['exact tokens', exact],
      ['chunks', `${formatCount(found.chunkCount)} of up to ${header.chunkTokens} tokens`],
      ['raw cache', formatBytes(found.rawBytes)],
      ['ratio', ratiosText(found.paperRatio, found.effectiveRatio)],
    ]),
  ];
}

function tunedFact({ tuning }: InspectedProfile): [string, string][] {
  const [first, chosen] = [tuning?.candidates[0], tuning?.candidates[tuning.chosen]];
  if (first === undefined || chosen === undefined) return [];
  const losses = ({ klNats, copyKlNats }: typeof first): string =>
    `KL ${formatSmall(klNats)}, copy KL ${formatSmall(copyKlNats)}`;
  const ratio = (2 ** (chosen.valueOffset / 256)).toFixed(2);
  const before = first === chosen ? 'as before' : `before ${losses(first)}`;
  return [['tuned', `exponent ${chosen.exponent}, value/key step ${ratio}: ${losses(chosen)}; ${before}`]];
}

function profileLines(found: InspectedProfile): string[] {
  const { model, provenance } = found;
  const plans = found.plans.map((plan) => [
    `${plan.ratio}x`,
    `${plan.keyRank} in ${plan.keyGroups} groups`,
    `${plan.valueRank} in ${plan.valueGroups} groups`,
    formatPercent(plan.keyError),
    formatPercent(plan.valueError),
  ]);
  const steps = found.steps.map((point) => [
    formatRatio(point.ratio),
    (2 ** (point.key.stepIndex / 256)).toPrecision(3),
    `${point.key.rank}`,
    `${point.value.rank}`,
  ]);
  const isWtc = found.codec === 'wtc';
  const quality = found.quality.map((point) => [
    ...(isWtc ? [point.step === undefined ? '-' : point.step.toPrecision(3)] : []),
    `${point.ratio}x`,
    formatRatio(point.paperRatio),
    formatRatio(point.effectiveRatio),
    formatSmall(point.klNats),
    point.copyKlNats === null ? '-' : formatSmall(point.copyKlNats),
    formatPercent(point.top1Agreement),
    point.weights,
    point.text,
  ]);
  const right = 'right' as const;
  const documents = provenance.documents.length;
  return [
    `${found.path}: kvtc profile ${found.id.slice(0, 12)}, ${formatBytes(found.byteLength)}`,
    '',
    facts([
      ['model', `${model.name} (${model.architecture}), ${model.fingerprint.slice(0, 12)}`],
      ['codec', found.codec],
      ['cache', geometryText(model.geometry)],
      ['rank', `keys ${found.rank.key}, values ${found.rank.value}`],
      ['matrices', profileSizeText(found)],
      ['calibrated on', `${formatCount(provenance.rows)} tokens of ${documents} documents, seed ${provenance.seed}`],
      [
        'held out',
        `${formatCount(provenance.heldOutRows)} tokens; first ${provenance.sinks} of each document left out`,
      ],
      ...(provenance.sensitivity === undefined ? [] : [['sensitivity', provenance.sensitivity] as const]),
      ...(found.tokenFeatures === null
        ? []
        : [['token ids', `tell ${found.tokenFeatures} features: coding and restoring need the model's file`] as const]),
      ...tunedFact(found),
      ['made by', provenance.producer],
    ]),
    '',
    isWtc
      ? table(steps, [right, right, right, right], ['ratio', 'step', 'key rank', 'value rank'])
      : table(
          plans,
          [right, right, right, right, right],
          ['plan', 'key components', 'value components', 'key error', 'value error'],
        ),
    ...(quality.length === 0
      ? ['', '  quality: not measured']
      : [
          '',
          table(
            quality,
            [...(isWtc ? [right] : []), right, right, right, right, right, right, 'left', 'left'],
            [
              ...(isWtc ? ['step', 'ratio'] : ['plan']),
              'paper',
              'effective',
              'KL nats',
              'copy KL',
              'top-1',
              'weights',
              'text',
            ],
          ),
        ]),
  ];
}
