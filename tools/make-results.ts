// Writes docs/results.md from the files below bench/. A test holds the page to them.

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readEvidence } from './results/read.ts';
import { resultsPage } from './results/tables.ts';

const root = join(import.meta.dirname, '..');
await writeFile(join(root, 'docs', 'results.md'), resultsPage(await readEvidence(join(root, 'bench'))));
