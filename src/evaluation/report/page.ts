// An evaluation as one self-contained HTML page: no script, no network, readable on a phone and in the dark.
// Joins sections; does not know how anything was measured.

import type { Evaluation } from '../evaluate.ts';
import { escapeHtml, factsHtml } from './html.ts';
import { PAGE_STYLE } from './page-style.ts';
import { costSection, errorSection, leadText, planSection, rateSection, spectrumSection } from './sections.ts';

export interface ReportInput {
  readonly evaluation: Evaluation;
  /** The command line that made it. */
  readonly command: string;
  /** Version, or commit, of the program. */
  readonly producer: string;
  readonly date: Date;
}

/** The page as text. Sections that need a close-up are left out where the evaluation has none. */
export function renderReport(input: ReportInput): string {
  const { evaluation } = input;
  const { closeUp, settings } = evaluation;
  const title = `${settings.model}: what compressing its cache costs`;
  const sections = [
    rateSection(evaluation),
    ...(closeUp === undefined
      ? []
      : [costSection(closeUp), spectrumSection(closeUp), planSection(closeUp), errorSection(closeUp)]),
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
    `<p class="lead">${escapeHtml(leadText(evaluation))}</p>`,
    ...sections,
    '</main></body></html>',
    '',
  ].join('\n');
}

function runSection({ evaluation, command, producer, date }: ReportInput): string {
  const { settings, machine, elapsedMs, closeUp } = evaluation;
  const kinds = new Map<string, number>();
  for (const { kind } of settings.documents) kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
  const minutes = Math.floor(elapsedMs / 60_000);
  const facts = factsHtml([
    ['command', command],
    ['program', producer],
    ['date', date.toISOString()],
    ['took', `${minutes} min ${Math.round((elapsedMs - 60_000 * minutes) / 1000)} s`],
    ['model', settings.model],
    ['model fingerprint', settings.modelFingerprint],
    ['profile', settings.profileId],
    ['weights', settings.weights],
    ['exact tokens', `${settings.sinks} sinks, window ${settings.window}`],
    ['documents', [...kinds].map(([kind, found]) => `${found} of ${kind}`).join(', ')],
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
