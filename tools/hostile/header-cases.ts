// Broken headers (docs/format/container.md, section 3). All checksums fit.

import { SectionKind } from '../../src/container/format.ts';
import { edited, replaceSection, splitSections } from '../../test/container-surgery.ts';
import { tinyBytes } from '../../test/tiny-container.ts';
import { hostileCases } from './cases.ts';

const { cases, add } = hostileCases();
export { cases as headerCases };

const good = await tinyBytes();
const headerText = new TextDecoder().decode(splitSections(good)[0]?.bytes);
const withHeader = (change: (text: string) => string): Uint8Array => {
  const changed = change(headerText);
  if (changed === headerText) throw new Error('the header did not change');
  return replaceSection(good, SectionKind.header, () => new TextEncoder().encode(changed));
};
const swap = (from: string, to: string) => (source: string) => source.replace(from, () => to);
const replacements: readonly (readonly [string, string, string])[] = [
  ['nan', '"step":1e-7', '"step":NaN'],
  ['infinity', '"step":1e-7', '"step":Infinity'],
  ['overflowing-number', '"step":1e-7', '"step":1e400'],
  ['negative-zero', '"step":1e-7', '"step":-0'],
  ['number-spelling', '"step":1e-7', '"step":0.0000001'],
  ['white-space', '{', '{ '],
  ['duplicate-member', '"chunkTokens":3,', '"chunkTokens":3,"chunkTokens":3,'],
  ['member-order', '"chunkTokens":3,"codec":"opaque"', '"codec":"opaque","chunkTokens":3'],
  ['escape-spelling', 'größe', 'gr\\u00f6\\u00dfe'],
  ['unknown-member', '"tokenCount":9}', '"tokenCount":9,"zeal":1}'],
  ['missing-member', '"entropy":"none",', ''],
  ['deep', '"step":1e-7', `"step":${'['.repeat(40)}${']'.repeat(40)}`],
  ['token-count-zero', '"tokenCount":9', '"tokenCount":0'],
  ['token-count-fraction', '"tokenCount":9', '"tokenCount":9.5'],
  ['token-count-other', '"tokenCount":9', '"tokenCount":10'],
  ['chunk-tokens-exceeded', '"chunkTokens":3', '"chunkTokens":2'],
  ['element-type', '"key":"f16"', '"key":"f64"'],
  ['element-type-length', '"key":"f16"', '"key":"f32"'],
  ['codec-name', '"codec":"opaque"', '"codec":"Opaque!"'],
  ['profile-id', 'abab', 'ABAB'],
  ['range-empty', '{"endToken":1,"startToken":0}', '{"endToken":1,"startToken":1}'],
  ['range-past-end', '{"endToken":7,"startToken":6}', '{"endToken":10,"startToken":6}'],
  ['ranges-overlap', '{"endToken":7,"startToken":6}', '{"endToken":7,"startToken":0}'],
  ['ranges-touch', '{"endToken":1,"startToken":0}', '{"endToken":6,"startToken":0}'],
  ['rope-dims-odd', '"dims":4', '"dims":3'],
  ['rope-dims-large', '"dims":4', '"dims":6'],
  ['rope-factors', '"frequencyFactors":[1,2.5]', '"frequencyFactors":[1]'],
  ['layers-huge', '"layers":2', '"layers":1000000'],
  ['layers-other', '"layers":2', '"layers":3'],
  ['not-an-object', headerText, '[]'],
  ['not-json', '}', ''],
];
for (const [name, from, to] of replacements) {
  add(`header-${name}`, 'KVTC_CONTAINER_MALFORMED', withHeader(swap(from, to)));
}
add('header-chunk-tokens-huge', 'KVTC_CONTAINER_LIMIT', withHeader(swap('"chunkTokens":3', '"chunkTokens":16385')));
add('header-token-count-huge', 'KVTC_CONTAINER_LIMIT', withHeader(swap('"tokenCount":9', '"tokenCount":2147483647')));
add(
  'header-rows-huge',
  'KVTC_CONTAINER_LIMIT',
  withHeader((source) =>
    source
      .replace('"keyHeadDim":4,"kvHeads":1', '"keyHeadDim":65536,"kvHeads":65536')
      .replace('"key":"f16"', '"key":"f32"'),
  ),
);
add(
  'header-not-utf8',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.header, (b) => edited(b, (v) => v.setUint8(3, 0xff))),
);
add(
  'header-empty',
  'KVTC_CONTAINER_MALFORMED',
  replaceSection(good, SectionKind.header, () => new Uint8Array(0)),
);
