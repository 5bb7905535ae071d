#!/usr/bin/env node
// Starts the command line: from dist/ in an installed package, from src/ in a checkout (Node strips the types).
// Plain JavaScript that old versions of Node can read too, so that they get an explanation instead of a syntax error.

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const [major, minor] = process.versions.node.split('.').map(Number);
const source = new URL('../src/cli/main.ts', import.meta.url);
const fromSource = existsSync(fileURLToPath(source));

if (major < 22 || (major === 22 && minor < 18)) {
  console.error(
    `kvtc needs Node 22.18 or later, this is ${process.versions.node}. ` +
      (fromSource
        ? 'In this checkout "npm run kvtc -- ..." uses the Node that "npm ci" brought (not with --ignore-scripts).'
        : 'Install a newer Node and run again.'),
  );
  process.exitCode = 1;
} else if (fromSource && !process.features.typescript) {
  console.error(
    'kvtc runs its TypeScript sources here; start Node without --no-strip-types, or build with "npm run build".',
  );
  process.exitCode = 1;
} else {
  const { main } = await import(fromSource ? source.href : new URL('../dist/cli/main.js', import.meta.url).href);
  await main(process.argv.slice(2));
}
