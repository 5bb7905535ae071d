// The texts of --text in the form that evaluations take. Does not know what is measured on them.

import { basename } from 'node:path';
import type { EvaluationText } from '../../evaluation/documents.ts';
import type { Arguments, VerbContext } from '../verb.ts';

/**
 * Reads the texts. Each path is a kind of its own, named by its last part, or as given where two paths end alike.
 * Throws what readTextFiles throws.
 */
export async function evaluationTexts(args: Arguments, context: VerbContext): Promise<EvaluationText[]> {
  const { readTextFiles } = await import('../../models/text-files.ts');
  const groups = await readTextFiles(args.texts('text'), context);
  const isAlone = (name: string): boolean => groups.filter((group) => basename(group.name) === name).length === 1;
  return groups.flatMap(({ name, texts }) => {
    const kind = isAlone(basename(name)) ? basename(name) : name;
    return texts.map((text) => ({ kind, ...text }));
  });
}
