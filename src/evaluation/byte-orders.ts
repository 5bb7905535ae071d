// What the published codec's packed bytes come to when they are laid out otherwise before DEFLATE: the reason for split
// planes (docs/format/paper-codec.md, "Packed chunk"). Does not know: caches, containers, how it is shown.

import { placeGroups } from '../codec/paper/packing.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import { compressBlocks } from '../codec/entropy/blocks.ts';

/** DEFLATE's usual level: orders are compared, not levels. */
const LEVEL = 6;

/** Bytes of one packed chunk, as they are and by DEFLATE in three orders. */
export interface ByteOrders {
  readonly tokens: number;
  readonly packedBytes: number;
  /** Token after token, each with its groups in turn. */
  readonly tokenMajorBytes: number;
  /** Group after group, each with its tokens in turn. */
  readonly groupMajorBytes: number;
  /** Minima and steps in planes of their own, then codes by type: what the codec writes. */
  readonly splitBytes: number;
}

/** In the order they are shown. */
export const BYTE_ORDERS = ['packedBytes', 'tokenMajorBytes', 'groupMajorBytes', 'splitBytes'] as const;

/** `packed`: a chunk of `tokens` tokens as the plan packs it, before any entropy coding. */
export async function measureByteOrders(packed: Uint8Array, tokens: number, plan: PaperPlan): Promise<ByteOrders> {
  const groups = placeGroups(plan, tokens);
  const order = (tokenMajor: boolean): Uint8Array => {
    const out = new Uint8Array(packed.length);
    let at = 0;
    const record = (group: (typeof groups)[number], token: number): void => {
      for (const byte of recordOf(packed, group, tokens, token)) out[at++] = byte;
    };
    if (tokenMajor) for (let token = 0; token < tokens; token++) for (const group of groups) record(group, token);
    else for (const group of groups) for (let token = 0; token < tokens; token++) record(group, token);
    return out;
  };
  const deflated = async (bytes: Uint8Array): Promise<number> =>
    (await compressBlocks(bytes, { method: 'deflate', level: LEVEL })).length;
  return {
    tokens,
    packedBytes: packed.length,
    tokenMajorBytes: await deflated(order(true)),
    groupMajorBytes: await deflated(order(false)),
    splitBytes: await deflated(packed),
  };
}

/** One token's minimum, step and codes of one group. */
function* recordOf(
  packed: Uint8Array,
  group: ReturnType<typeof placeGroups>[number],
  tokens: number,
  token: number,
): Generator<number> {
  const { type, minOffsetBytes, stepOffsetBytes, codeOffsetBytes, tokenBytes } = group;
  if (type !== 'fp8') {
    for (const plane of [minOffsetBytes, stepOffsetBytes])
      yield* packed.subarray(plane + 2 * token, plane + 2 * token + 2);
    yield* packed.subarray(codeOffsetBytes + token * tokenBytes, codeOffsetBytes + (token + 1) * tokenBytes);
    return;
  }
  // Codes of fp8 lie component after component.
  for (let i = 0; i < tokenBytes; i++) yield packed[codeOffsetBytes + i * tokens + token]!;
}
