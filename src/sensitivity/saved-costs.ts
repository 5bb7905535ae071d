// Keeps what single documents showed in a directory, so that an interrupted measurement goes on where it was. Each is a
// sensitivity file of its own with sums of the residual stream among its settings. Does not know how costs are measured.

import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { replaceFile, writeFailed, writeFully } from '../base/atomic-file.ts';
import { isKvtcError } from '../base/errors.ts';
import { PRODUCER } from '../base/version.ts';
import { readSensitivity, writeSensitivity } from '../calibration/sensitivity-file.ts';
import type { ModelIdentity } from '../profile/profile.ts';
import type { DocumentCosts } from './attention-costs.ts';
import type { LayerLosses } from './layer-scales.ts';

const settingsSchema = z.object({ key: z.string(), energies: z.array(z.number()), counts: z.array(z.number()) });

/** Costs of document `index` saved under `key`; null when there are none, other ones or damaged ones. */
export async function loadCosts(
  directory: string,
  index: number,
  key: string,
  model: ModelIdentity,
): Promise<DocumentCosts | null> {
  try {
    const { metrics, importance, settings } = await readSensitivity(pathOf(directory, index), model);
    const found = settingsSchema.parse(settings);
    const { layers } = model.geometry;
    if (importance === null || found.key !== key) return null;
    if (found.energies.length !== layers || found.counts.length !== layers) return null;
    const [energies, counts] = [Float64Array.from(found.energies), Float64Array.from(found.counts)];
    return { metrics, importance: { key: importance.key, value: importance.value }, energies, counts };
  } catch (error) {
    if (isKvtcError(error) || error instanceof z.ZodError) return null;
    throw error;
  }
}

/** Throws KVTC_WRITE_FAILED. */
export async function saveCosts(
  directory: string,
  index: number,
  key: string,
  { architecture, name, fingerprint, geometry }: ModelIdentity,
  prefix: Int32Array,
  { metrics, importance, energies, counts }: DocumentCosts,
): Promise<void> {
  await mkdir(directory, { recursive: true }).catch((error: unknown) => {
    throw writeFailed(directory, error);
  });
  await writeSensitivity(pathOf(directory, index), {
    method: 'forward',
    producer: PRODUCER,
    model: { architecture, name, fingerprint, geometry },
    settings: { key, energies: [...energies], counts: [...counts] },
    metrics,
    importance: {
      documents: 1,
      documentTokens: prefix.length,
      prefixTokens: prefix.length,
      tokens: prefix,
      ...importance,
    },
  });
}

const lossesSchema = z.object({ key: z.array(z.number()), value: z.array(z.number()) });
const savedLossesSchema = z.object({ key: z.string(), klSums: lossesSchema, costs: lossesSchema });

/** Losses of document `index` saved under `key`; null as `loadCosts`. */
export async function loadLosses(
  directory: string,
  index: number,
  key: string,
  layers: number,
): Promise<LayerLosses | null> {
  const text = await readFile(lossesPath(directory, index), 'utf8').catch(() => null);
  if (text === null) return null;
  try {
    const found = savedLossesSchema.parse(JSON.parse(text));
    const complete = [found.klSums, found.costs].every(
      ({ key: keys, value }) => keys.length === layers && value.length === layers,
    );
    return found.key === key && complete ? { klSums: found.klSums, costs: found.costs } : null;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return null;
    throw error;
  }
}

/** Throws KVTC_WRITE_FAILED. */
export async function saveLosses(directory: string, index: number, key: string, losses: LayerLosses): Promise<void> {
  const bytes = new TextEncoder().encode(JSON.stringify({ key, ...losses }));
  await replaceFile(lossesPath(directory, index), (file) => writeFully(file, bytes, 0));
}

function lossesPath(directory: string, index: number): string {
  return join(directory, `layers-${index}.json`);
}

function pathOf(directory: string, index: number): string {
  return join(directory, `document-${index}.safetensors`);
}
