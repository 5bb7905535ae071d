// The report of a real evaluation of a tiny model, as a browser shows it: every chart has marks, nothing fails, nothing
// sticks out, by day and by night, on a desk and on a phone. Needs Chromium (CONTRIBUTING.md); on CI it must be there.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';
import type { BrowserContext, Page } from 'playwright-core';
import { chromium } from 'playwright-core';
import { isKvtcError } from '../src/base/errors.ts';
import { calibrate } from '../src/cache/calibrate.ts';
import type { Evaluation } from '../src/evaluation/evaluate.ts';
import { evaluate } from '../src/evaluation/evaluate.ts';
import { renderReport, writeReport } from '../src/evaluation/report/page.ts';
import { rowRivals } from '../src/evaluation/rivals/treatments.ts';
import { nats } from '../src/evaluation/report/words.ts';
import { makeTinyWorld, tinyCalibration, tinyText } from './tiny-world.ts';

const CHROMIUM = process.env['KVTC_CHROMIUM'] ?? '/usr/bin/chromium';
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
/** Without tasks; those add a chart each, and grids. */
const CHARTS = [
  'bytes',
  'energy',
  'heads-key-2',
  'heads-key-4',
  'heads-key-8',
  'heads-value-2',
  'heads-value-4',
  'heads-value-8',
  'lengths',
  'paper-rate-copy-kl',
  'paper-rate-kl',
  'plan-key',
  'plan-value',
  'positions-key',
  'positions-value',
  'rate-copy-kl',
  'rate-kl',
  'spectrum',
  'times',
];

let folder = '';
let pagePath = '';
let evaluation: Evaluation;

before(async () => {
  const world = await makeTinyWorld('llama');
  folder = world.directory;
  pagePath = join(folder, 'report.html');
  const texts = ['even', 'odd'].map((kind, i) => ({
    kind,
    source: `<${kind}> & co`,
    text: sentences(tinyText(900, 50 + i)),
  }));
  const wtcPath = join(folder, 'wtc.profile.safetensors');
  await calibrate({ ...tinyCalibration(world.modelPath, wtcPath), codec: 'wtc', sensitivity: 'none' });
  const measured = await evaluate({
    modelPath: world.modelPath,
    profilePath: world.profilePath,
    alsoProfilePaths: [wtcPath],
    texts,
    prefixTokens: 512,
    continuationTokens: 64,
    copyTokens: 64,
    documents: 2,
    treatments: ({ model }) => rowRivals(model.identity.geometry).slice(0, 3),
    tasks: { names: ['needle'], lengths: [200, 300], items: 2 },
    cacheDirectory: join(folder, 'cache'),
    closeUp: true,
    threads: 1,
    command: 'kvtc evaluate <tiny> --report out.html',
  });
  evaluation = withAnswers(measured);
  await writeReport(pagePath, { evaluation, date: new Date(0) });
});
after(() => rm(folder, { recursive: true, force: true }));

/** Tasks hide things between sentences. */
function sentences(text: string): string {
  return text.replaceAll(/((?:\w+ ){6}\w+) /gu, '$1. ');
}

/**
 * A model of random weights answers nothing, so that its grids are empty. To see full ones, every question counts as
 * answered by the exact cache, and those of even depths as kept; nothing else is changed.
 */
function withAnswers(measured: Evaluation): Evaluation {
  const answered = (row: Evaluation['floor']): Evaluation['floor'] => ({
    ...row,
    tasks: Object.fromEntries(
      Object.entries(row.tasks ?? {}).map(([name, figures]) => {
        const cells = figures.cells.map((cell, i) => {
          const correct = i % 2 === 0 ? cell.questions : 0;
          return { ...cell, exactCorrect: cell.questions, correct };
        });
        const correct = cells.reduce((sum, cell) => sum + cell.correct, 0);
        const exactCorrect = figures.questions;
        return [name, { ...figures, cells, exactCorrect, correct, accuracy: correct / exactCorrect }];
      }),
    ),
  });
  return { ...measured, rows: measured.rows.map(answered), floor: answered(measured.floor) };
}

describe('the report page', () => {
  it('is one file that loads nothing and runs nothing', async () => {
    const html = await readFile(pagePath, 'utf8');
    assert.doesNotMatch(html, /<script|<link|<iframe|<img|@import|\burl\(\s*['"]?(?!#)/iu);
    assert.doesNotMatch(html.replaceAll(/http:\/\/www\.w3\.org\/[\w/]+/gu, ''), /https?:\/\//u);
    assert.match(html, /default-src 'none'/u);
    assert.doesNotMatch(html, /NaN|undefined|Infinity|\[object/u);
  });

  it('tells KL and copy KL of every document', async () => {
    const html = await readFile(pagePath, 'utf8');
    assert.match(html, /KL by document, nats a token.*>1 even<.*>2 odd<.*Copy KL by document.*>1 even<.*>2 odd</su);
    const [first] = evaluation.rows;
    assert.equal(first?.byDocument?.length, 2);
    assert.ok(html.includes(`<td>${nats(first.byDocument[1]?.klNats ?? NaN)}</td>`));
  });

  it('names what was run and escapes what came from outside', async () => {
    const html = await readFile(pagePath, 'utf8');
    const { settings, machine, commit } = evaluation;
    for (const fact of [settings.modelFingerprint, settings.profileId, machine.processor, machine.engine, commit]) {
      assert.ok(html.includes(fact), fact);
    }
    assert.ok(html.includes('kvtc evaluate &#60;tiny&#62;') && html.includes('&#60;even&#62; &#38; co'));
    for (const row of evaluation.rows) assert.ok(html.includes(row.treatment), row.treatment);
  });

  it('is the same for the same evaluation read back from JSON', () => {
    const again: Evaluation = JSON.parse(JSON.stringify(evaluation)) as Evaluation;
    const date = new Date(0);
    assert.equal(renderReport({ evaluation: again, date }), renderReport({ evaluation, date }));
  });

  it('leaves out the sections that were not measured', () => {
    const { closeUp: _, ...rest } = evaluation;
    const bare = { ...rest, rows: rest.rows.map(({ tasks: __, ...row }) => row) };
    const html = renderReport({ evaluation: bare, date: new Date(0) });
    const charts = [...html.matchAll(/data-chart="([^"]+)"/gu)].map(([, id]) => id);
    assert.deepEqual(charts.toSorted(), ['paper-rate-copy-kl', 'paper-rate-kl', 'rate-copy-kl', 'rate-kl']);
    const lossless = rest.rows.map((row) => ({ ...row, klNats: NaN, copyKlNats: NaN }));
    const settings = { ...rest.settings, documents: [] };
    const tasksOnly = renderReport({ evaluation: { ...rest, settings, rows: lossless }, date: new Date(0) });
    assert.match(tasksOnly, /data-chart="task-needle"/u);
    assert.match(tasksOnly, /Where needle loses answers/u);
    const kept = lossless.map((row) => ({
      ...row,
      tasks: Object.fromEntries(
        Object.entries(row.tasks ?? {}).map(([name, figures]) => [
          name,
          { ...figures, correct: figures.exactCorrect, accuracy: 1 },
        ]),
      ),
    }));
    const nothingLost = renderReport({ evaluation: { ...rest, settings, rows: kept }, date: new Date(0) });
    assert.match(nothingLost, /loses none of \d+ answers on needle<.*needle: no answer is lost/su);
    assert.doesNotMatch(tasksOnly, /NaN|nats a token|losses no worse|class="(lead|tiles)"/u);
  });

  it('shows codecs side by side: a line and a colour for each, and what one reaches at the losses of the other', async () => {
    const html = await readFile(pagePath, 'utf8');
    const chart = /<figure data-chart="rate-kl">.*?<\/figure>/su.exec(html)?.[0] ?? '';
    assert.deepEqual(
      [...chart.matchAll(/<li><i style="background:(var\([^)]+\))"><\/i>(\w+)<\/li>/gu)].map(([, colour, name]) => [
        name,
        colour,
      ]),
      [
        ['kvtc', 'var(--key)'],
        ['wtc', 'var(--value)'],
        ['rivals', 'var(--rival)'],
      ],
    );
    const table = /no worse in KL and copy KL than.*?<\/table>/su.exec(html)?.[0] ?? '';
    const compared = evaluation.rows.filter(({ series }) => series === 'kvtc');
    assert.equal(compared.length, 3);
    for (const { treatment } of compared) assert.ok(table.includes(`<td>${treatment}</td>`), treatment);
    assert.match(table, /<td>wtc<\/td><td>(&#60; |&#62; )?[\d.]+<\/td>/u);
    for (const { name, id } of evaluation.settings.profiles ?? []) assert.ok(html.includes(id), name);
    const wtcFirst = { ...evaluation, rows: evaluation.rows.filter(({ series }) => series !== 'kvtc') };
    assert.doesNotMatch(renderReport({ evaluation: wtcFirst, date: new Date(0) }), /no worse in KL|NaN|undefined/u);
  });

  it('charts ablations: loss where it changes, size where only that does', () => {
    const { floor } = evaluation;
    const one = (set: 'sinks' | 'entropy', value: string, klNats: number, paperRatio: number) => ({
      ...floor,
      set,
      value,
      klNats,
      paperRatio,
      effectiveRatio: 2,
      atRatio: 4,
      copyKlNats: 2 * klNats,
    });
    const ablations = [
      one('sinks', '0', 0.5, 4),
      { ...one('sinks', '4', 0.01, 4.1), series: 'kvtc' },
      one('entropy', 'none', 0.01, 3.9),
      one('entropy', 'zstd <3>', 0.01, 4),
    ];
    const html = renderReport({ evaluation: { ...evaluation, ablations }, date: new Date(0) });
    const figures = [...html.matchAll(/<figure data-chart="(ablation[^"]+)">.*?<\/figure>/gsu)];
    assert.deepEqual(
      figures.map(([, id]) => id),
      ['ablation-sinks-at-4x', 'ablation-entropy-at-4x'],
    );
    assert.deepEqual(
      figures.map(([figure]) => figure.match(/<circle/gu)?.length),
      [4, 2],
    );
    assert.match(html, /Nothing matters more than sinks at 4x: 0 costs 50 times the KL of 4/u);
    assert.ok(html.includes('entropy zstd &#60;3&#62;'));
    assert.match(html, /id="ablations".*<td>floor<\/td>/su);
    assert.ok(html.includes('<td>sinks 4 (default), at 4x</td>') && html.includes('<td>sinks 0, at 4x</td>'));
    assert.match(figures[0]?.[0] ?? '', /Furthest: 0, at 50 times its KL/u);
  });

  it('is not half written where it cannot be written', async () => {
    await assert.rejects(writeReport(join(folder, 'none', 'report.html'), { evaluation, date: new Date(0) }), (error) =>
      isKvtcError(error, 'KVTC_WRITE_FAILED'),
    );
  });

  const missing = existsSync(CHROMIUM) ? false : `${CHROMIUM} is not installed: apt-get install chromium`;
  describe('in a browser', { skip: process.env['CI'] === undefined ? missing : false }, () => {
    let browser: BrowserContext;
    let page: Page;
    let profile = '';
    const trouble: string[] = [];

    before(async () => {
      assert.equal(missing, false);
      profile = await mkdtemp(join(tmpdir(), 'kvtc-chromium-'));
      const options = { executablePath: CHROMIUM, headless: true, args: FLAGS };
      browser = await chromium.launchPersistentContext(profile, options);
      page = await browser.newPage();
      page.on('console', (message) => trouble.push(message.text()));
      page.on('pageerror', (error) => trouble.push(String(error)));
      page.on('request', (request) => {
        if (!request.url().startsWith('file:')) trouble.push(`asked for ${request.url()}`);
      });
    });
    after(async () => {
      await browser?.close();
      await rm(profile, { recursive: true, force: true });
    });

    for (const colorScheme of ['light', 'dark'] as const) {
      for (const width of [390, 1120]) {
        it(`draws every chart, ${colorScheme}, ${width} pixels wide`, async () => {
          await page.setViewportSize({ width, height: 900 });
          await page.emulateMedia({ colorScheme });
          await page.goto(pathToFileURL(pagePath).href);
          const seen = (await page.evaluate(LOOK)) as Seen;
          assert.deepEqual(trouble, []);
          assert.ok(seen.scrollWidth <= width, `${seen.scrollWidth} pixels in ${width}`);
          assert.ok(colorScheme === 'dark' ? seen.lightness < 60 : seen.lightness > 200, `lightness ${seen.lightness}`);
          const ids = seen.charts.map(({ id }) => id).filter((id) => !/^(task|grid)-/u.test(id));
          assert.deepEqual(ids.toSorted(), CHARTS);
          const extra = seen.charts.filter(({ id }) => id.startsWith('task-') || id.startsWith('grid-needle'));
          assert.ok(extra.length > 4, extra.map(({ id }) => id).join());
          for (const { id, marks, broken, outside, colours } of seen.charts) {
            assert.ok(marks > 0, `${id} has no marks`);
            assert.ok(colours > 0, `${id} has nothing that can be told from the page`);
            assert.deepEqual([broken, outside], [[], []], id);
          }
        });
      }
    }
  });
});

interface Seen {
  readonly scrollWidth: number;
  /** Of the page's background, 0 to 255. */
  readonly lightness: number;
  readonly charts: readonly {
    readonly id: string;
    /** Shapes with an extent outside axes and grids. */
    readonly marks: number;
    /** Attributes that are no numbers. */
    readonly broken: readonly string[];
    /** Texts that leave the page. */
    readonly outside: readonly string[];
    /** Marks' colours that differ from the background. */
    readonly colours: number;
  }[];
}

/** Runs in the page, where this file's types are not: text, so that none of them is promised. */
const LOOK = `(() => {
  for (const details of document.querySelectorAll('details')) details.open = true;
  const background = getComputedStyle(document.body).backgroundColor;
  const lightness = background.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part) / 3, 0);
  const charts = [...document.querySelectorAll('figure[data-chart]')].map((figure) => {
    const svg = figure.querySelector('svg');
    const shapes = [...svg.querySelectorAll('path, rect, circle, line')].filter(
      (shape) => !shape.closest('[aria-label$="axis tick"], [aria-label$="grid"], marker'),
    );
    const drawn = shapes.filter((shape) => {
      const { width, height } = shape.getBoundingClientRect();
      return width + height > 0.5;
    });
    const colours = new Set(
      drawn.flatMap((shape) => [getComputedStyle(shape).fill, getComputedStyle(shape).stroke]),
    );
    colours.delete('none');
    colours.delete(background);
    const broken = [...svg.querySelectorAll('*')].flatMap((node) =>
      [...node.attributes].filter(({ value }) => /NaN|undefined|Infinity/.test(value)).map(({ name, value }) => name + '=' + value),
    );
    const outside = [...svg.querySelectorAll('text')]
      .filter((text) => {
        const { left, right, width } = text.getBoundingClientRect();
        return width > 0 && (left < -1 || right > innerWidth + 1);
      })
      .map((text) => text.textContent);
    return { id: figure.dataset.chart, marks: drawn.length, broken, outside, colours: colours.size };
  });
  return { scrollWidth: document.documentElement.scrollWidth, lightness, charts };
})()`;
