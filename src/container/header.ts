// The header section: a typed object ⇄ canonical JSON, validated at the boundary (docs/format/container.md, section 3).
// Does not know: what codecParameters mean, other sections.

import { z } from 'zod';
import { KvtcError } from '../base/errors.ts';
import { layerWidth, STREAMS } from '../base/geometry.ts';
import { canonicalJson, parseCanonicalJson } from './canonical-json.ts';
import { DEFAULT_LIMITS } from './format.ts';
import type { ContainerHeader, ContainerLimits, JsonObject } from './types.ts';

const methodId = z.string().regex(/^[a-z][a-z0-9.-]{0,63}$/);
const sha256Hex = z.string().regex(/^[0-9a-f]{64}$/);
const count = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
const dimension = z.int().min(1).max(65536);
const elementType = z.enum(['f32', 'f16', 'bf16', 'q8_0']);

const ropeSchema = z.strictObject({
  pairing: z.enum(['interleaved', 'half-split']),
  dims: z.int().min(0).max(65536).multipleOf(2),
  frequencyBase: z.number(),
  frequencyScale: z.number(),
  extFactor: z.number(),
  attnFactor: z.number(),
  betaFast: z.number(),
  betaSlow: z.number(),
  originalContext: z.number(),
  frequencyFactors: z.array(z.number()).nullable(),
});

const modelSchema = z.strictObject({
  architecture: z.string().max(1024),
  name: z.string().max(1024),
  geometry: z.strictObject({
    layers: dimension,
    kvHeads: dimension,
    keyHeadDim: dimension,
    valueHeadDim: dimension,
  }),
  rope: ropeSchema,
  fingerprint: sha256Hex,
});

const headerShape = {
  producer: z.string().max(256),
  codec: methodId,
  codecParameters: z.custom<JsonObject>(
    (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
    'expected an object',
  ),
  entropy: methodId,
  profileId: sha256Hex,
  model: modelSchema,
  tokenCount: count,
  chunkTokens: count,
  elementTypes: z.strictObject({ key: elementType, value: elementType }),
  exactRanges: z.array(z.strictObject({ startToken: z.int().min(0), endToken: z.int().min(1) })),
  engine: z.string().max(1024),
};

/** Canonical bytes of a header. Throws KVTC_OPTION_INVALID when a field or the whole is outside its domain or limit. */
export function encodeHeader(header: ContainerHeader): Uint8Array {
  let bytes: Uint8Array;
  try {
    bytes = new TextEncoder().encode(canonicalJson(header));
    decodeHeader(bytes, true, DEFAULT_LIMITS);
    checkHeaderLength(bytes.length, DEFAULT_LIMITS);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new KvtcError('KVTC_OPTION_INVALID', `cannot write this header: ${why}`, {}, { cause });
  }
  return bytes;
}

/**
 * The inverse, for bytes whose length is already within the limits. `strict` refuses unknown members of the outermost
 * object; readers of a later minor version ignore them. Throws KVTC_CONTAINER_MALFORMED, KVTC_CONTAINER_LIMIT.
 */
export function decodeHeader(bytes: Uint8Array, strict: boolean, limits: ContainerLimits): ContainerHeader {
  const header = checkHeader(parseCanonicalJson(bytes), strict);
  for (const [name, got, limit] of [
    ['tokenCount', header.tokenCount, limits.tokens],
    ['chunkTokens', header.chunkTokens, limits.chunkTokens],
  ] as const) {
    if (got > limit) {
      throw new KvtcError('KVTC_CONTAINER_LIMIT', `the header's ${name} is ${got}; the limit is ${limit}`, {
        section: 'header',
        got,
        limit,
      });
    }
  }
  return header;
}

/** Throws KVTC_CONTAINER_LIMIT. */
export function checkHeaderLength(gotBytes: number, limits: ContainerLimits): void {
  if (gotBytes > limits.headerBytes) {
    throw new KvtcError(
      'KVTC_CONTAINER_LIMIT',
      `the header has ${gotBytes} bytes; the limit is ${limits.headerBytes}`,
      {
        section: 'header',
        gotBytes,
        limitBytes: limits.headerBytes,
      },
    );
  }
}

function checkHeader(value: unknown, strict: boolean): ContainerHeader {
  const schema = strict ? z.strictObject(headerShape) : z.object(headerShape);
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw malformed(`${issue?.path.join('.') || 'the object'}: ${issue?.message ?? 'invalid'}`);
  }
  const header: ContainerHeader = parsed.data;
  const { geometry, rope } = header.model;
  for (const stream of STREAMS) {
    if (header.elementTypes[stream] === 'q8_0' && layerWidth(geometry, stream) % 32 !== 0) {
      throw malformed(`${stream} rows are q8_0 but ${layerWidth(geometry, stream)} values wide, not a multiple of 32`);
    }
  }
  if (rope.dims > geometry.keyHeadDim) {
    throw malformed(`model.rope.dims is ${rope.dims}; a key head has ${geometry.keyHeadDim} values`);
  }
  if (rope.frequencyFactors !== null && rope.frequencyFactors.length !== rope.dims / 2) {
    throw malformed(`model.rope.frequencyFactors has ${rope.frequencyFactors.length} items; expected ${rope.dims / 2}`);
  }
  let from = -1;
  for (const { startToken, endToken } of header.exactRanges) {
    if (startToken <= from || endToken <= startToken || endToken > header.tokenCount) {
      throw malformed(
        `exactRanges has [${startToken}, ${endToken}); expected sorted, separate ranges within ${header.tokenCount} tokens`,
      );
    }
    from = endToken;
  }
  return header;
}

function malformed(what: string): KvtcError {
  return new KvtcError('KVTC_CONTAINER_MALFORMED', `the container's header is invalid: ${what}`, { section: 'header' });
}
