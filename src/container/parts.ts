// Names every byte of a container, for `kvtc inspect` and for the accounting: parts sum to the file, always.
// Reads no bytes.

import { invariant } from '../base/errors.ts';
import { PREAMBLE_BYTES, SECTION_ENTRY_BYTES, SectionKind } from './format.ts';
import type { ExactLayout, SectionEntry } from './format.ts';
import type { ChunkEntry, ContainerPart, PartKind } from './types.ts';

const WHOLE_SECTIONS: Readonly<Record<number, PartKind>> = {
  [SectionKind.header]: 'header',
  [SectionKind.exactChecksums]: 'exact-checksums',
  [SectionKind.chunkIndex]: 'chunk-index',
  [SectionKind.positions]: 'positions',
  [SectionKind.tokens]: 'tokens',
};

/** All parts in file order, empty ones left out. Sections are the checked ones of the file. */
export function listParts(
  fileBytes: number,
  sections: readonly SectionEntry[],
  exact: ExactLayout,
  chunks: readonly ChunkEntry[],
): readonly ContainerPart[] {
  const parts: ContainerPart[] = [];
  let at = 0;
  const add = (kind: PartKind, byteLength: number, block?: Pick<ContainerPart, 'stream' | 'tokens'>): void => {
    if (byteLength > 0) parts.push(Object.freeze({ kind, offsetBytes: at, byteLength, ...block }));
    at += byteLength;
  };
  add('preamble', PREAMBLE_BYTES);
  add('section-table', sections.length * SECTION_ENTRY_BYTES);
  for (const section of sections) {
    add('padding', section.offsetBytes - at);
    if (section.kind === SectionKind.exactRows) {
      for (const block of exact.blocks) {
        add('exact-rows', block.layers * block.layerBytes, { stream: block.stream, tokens: block.tokens });
      }
    } else if (section.kind === SectionKind.payload) {
      for (const { stream, startToken, endToken, storedBytes } of chunks) {
        add('chunk', storedBytes, { stream, tokens: { startToken, endToken } });
      }
    } else {
      add(WHOLE_SECTIONS[section.kind] ?? 'ancillary', section.byteLength);
    }
    invariant(at === section.offsetBytes + section.byteLength, `parts of section ${section.kind} miss its end`);
  }
  invariant(at === fileBytes, `parts sum to ${at} bytes, the file has ${fileBytes}`);
  return Object.freeze(parts);
}
