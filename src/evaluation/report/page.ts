// An evaluation as one self-contained HTML page: no script, no network, readable on a phone and in the dark.
// Joins sections; does not know how anything was measured.

import { replaceFile, writeFully } from '../../base/atomic-file.ts';
import type { Ablation } from '../ablation/ablate.ts';
import type { CloseUp } from '../close-up.ts';
import type { Evaluation } from '../evaluate.ts';
import { ablationSection } from './ablation-section.ts';
import { evaluatedProfiles, exactTokensText } from '../series.ts';
import { leadText, tilesHtml } from './head.ts';
import { wholeNumber } from './chart.ts';
import { escapeHtml, factsHtml, sectionHtml } from './html.ts';
import { PAGE_STYLE } from './page-style.ts';
import { taskSection } from './task-section.ts';
import { costSection, errorSection, planSection, spectrumSection } from './sections.ts';
import { rateSection } from './rate-section.ts';
import { list } from './words.ts';

export interface ReportInput {
  readonly evaluation: Evaluation & Partial<Pick<Ablation, 'ablations'>>;
  readonly date: Date;
}

/** Writes the page, whole or not at all. Throws KVTC_WRITE_FAILED. */
export async function writeReport(path: string, input: ReportInput): Promise<void> {
  const page = Buffer.from(renderReport(input));
  await replaceFile(path, (file) => writeFully(file, page, 0));
}

/** The page as text. Sections that need a close-up are left out where the evaluation has none. */
export function renderReport(input: ReportInput): string {
  const { evaluation } = input;
  const { closeUp, settings } = evaluation;
  const varied = (evaluation.ablations ?? []).length > 0;
  const title = `${settings.model}: ${varied ? 'what the choices of its codec are worth' : 'what compressing its cache costs'}`;
  const sections = [
    ablationSection(evaluation.ablations ?? [], evaluation.floor),
    ...(settings.documents.length === 0 ? [] : [rateSection(evaluation)]),
    taskSection(evaluation),
    ...(closeUp === undefined
      ? []
      : [
          closerSection(evaluation, closeUp),
          costSection(closeUp),
          spectrumSection(closeUp),
          planSection(closeUp),
          errorSection(closeUp),
        ]),
    runSection(input),
  ];
  return [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
    `<title>${escapeHtml(title)}</title><style>${PAGE_STYLE}</style></head><body><main>`,
    `<p class="eyebrow">kvtc evaluation, ${input.date.toISOString().slice(0, 10)}</p>`,
    `<h1>${escapeHtml(title)}</h1>`,
    settings.documents.length === 0 ? '' : `<p class="lead">${escapeHtml(leadText(evaluation))}</p>`,
    tilesHtml(evaluation),
    ...sections,
    '</main></body></html>',
    '',
  ].join('\n');
}

/** What the charts after it are of: a close-up is of one profile and one document. */
function closerSection(evaluation: Evaluation, { document, ratios }: CloseUp): string {
  const [profile] = evaluatedProfiles(evaluation);
  const text = `From here on: the profile ${profile?.name ?? ''} at ${list(ratios.map(({ ratio }) => `${ratio}x`))}, on the first ${wholeNumber(document.tokens)} tokens of ${document.source} (${document.kind}).`;
  return sectionHtml('closer', 'A closer look at one document', text, '');
}

function runSection({ evaluation, date }: ReportInput): string {
  const { settings, machine, elapsedMs, closeUp, command, commit } = evaluation;
  const kinds = new Map<string, number>();
  for (const { kind } of settings.documents) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  const minutes = Math.floor(elapsedMs / 60_000);
  const facts = factsHtml([
    ['command', command === '' ? 'a call of the library' : command],
    ['commit', commit],
    ['date', date.toISOString()],
    ['took', `${minutes} min ${Math.round((elapsedMs - 60_000 * minutes) / 1000)} s`],
    ['model', settings.model],
    ['model fingerprint', settings.modelFingerprint],
    ...evaluatedProfiles(evaluation).map(({ name, id, codec }): [string, string] => [
      `profile ${name}`,
      `${id}, ${codec}`,
    ]),
    ['weights', settings.weights],
    ['exact tokens', exactTokensText(evaluation)],
    ['documents', [...kinds].map(([kind, found]) => `${found} of ${kind}`).join(', ') || 'none'],
    [
      'looked at closely',
      closeUp === undefined ? 'none' : `${closeUp.document.source}, ${closeUp.document.tokens} tokens`,
    ],
    ['processor', `${machine.processor}, ${machine.threads} threads`],
    ['platform', `${machine.platform}, Node ${machine.node}, llama.cpp ${machine.engine}`],
  ]);
  const documents = settings.documents.map(
    ({ kind, source, sha256 }) =>
      `<li>${escapeHtml(`${kind}: ${source}`)} <code>${escapeHtml(sha256.slice(0, 16))}</code></li>`,
  );
  return `<section id="run"><h2>What was run</h2>${facts}<details><summary>The documents</summary><ul class="note">${documents.join('')}</ul></details></section>`;
}
