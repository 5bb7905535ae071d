// Named parts of an opened profile file: metadata texts, tensors of an expected type and shape, small tensors whole.
// Does not know what they mean.

import type { FileHandle } from 'node:fs/promises';
import type { SafetensorsHeader, TensorEntry, TensorType } from './safetensors.ts';
import { malformed, readExactly } from './safetensors.ts';

/** A metadata text. Throws KVTC_PROFILE_MALFORMED where it is missing. */
export function part(header: SafetensorsHeader, name: string, path: string): string {
  const text = header.metadata.get(name);
  if (text === undefined) throw malformed(path, `its metadata lacks ${name}`, { part: name });
  return text;
}

/** A tensor's place. Throws KVTC_PROFILE_MALFORMED where it is missing or has another type or shape. */
export function tensor(
  header: SafetensorsHeader,
  name: string,
  type: TensorType,
  shape: readonly number[],
  path: string,
): TensorEntry {
  const entry = header.tensors.get(name);
  if (entry === undefined) throw malformed(path, `it lacks the tensor ${name}`, { tensor: name });
  if (entry.type !== type || entry.shape.join() !== shape.join()) {
    throw malformed(
      path,
      `tensor ${name} is ${entry.type} [${entry.shape.join(', ')}], expected ${type} [${shape.join(', ')}]`,
      { tensor: name },
    );
  }
  return entry;
}

/** A whole f32 tensor, every value finite. Throws KVTC_PROFILE_MALFORMED. */
export async function readVector(
  file: FileHandle,
  entry: TensorEntry,
  name: string,
  path: string,
): Promise<Float32Array> {
  const values = new Float32Array(entry.lengthBytes / 4);
  await readExactly(file, new Uint8Array(values.buffer), entry.offsetBytes, path);
  const index = values.findIndex((value) => !Number.isFinite(value));
  if (index >= 0) throw malformed(path, `${name}[${index}] is ${values[index]}`, { tensor: name, index });
  return values;
}
