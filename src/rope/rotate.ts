// Rotary position embedding, applied and undone on f32 rows, with angles in the same f32 steps as ggml takes them:
// exact f64 angles drift from the engine's by 4e-4 (relative) at position 30 000.
// Does not know where rows come from; linalg/ggml runs the same rotation inside graphs.

import { invariant } from '../base/errors.ts';
import type { RopeDescription } from './description.ts';

/** Heads of one token's row. A row over all layers is `layers · kvHeads` heads. */
export interface HeadShape {
  readonly heads: number;
  readonly headDim: number;
}

/**
 * Rotates rows to their positions: `values` f32[positions.length, heads · headDim] → `out`, which may be `values`.
 * Dims beyond `rope.dims` of a head are copied. Rounds each result once; ggml's own rounding differs in the last bit.
 */
export function applyRope(
  values: Float32Array,
  positions: Int32Array,
  rope: RopeDescription,
  shape: HeadShape,
  out: Float32Array = values,
): void {
  rotate(values, positions, rope, shape, out, false);
}

/** The inverse of applyRope: rows at position 0, with the magnitude scale of YaRN divided out. */
export function undoRope(
  values: Float32Array,
  positions: Int32Array,
  rope: RopeDescription,
  shape: HeadShape,
  out: Float32Array = values,
): void {
  rotate(values, positions, rope, shape, out, true);
}

/**
 * Cosines and sines of one position, scaled by the magnitude factor: fills `cosines` and `sines` f32[dims / 2].
 * Source: ggml's rope for the CPU, restated.
 */
export type AngleTable = (position: number, cosines: Float32Array, sines: Float32Array) => void;

/** Prepares what does not depend on the position. The factor on cosines and sines is `magnitude`. */
export function ropeAngles(rope: RopeDescription): { readonly fill: AngleTable; readonly magnitude: number } {
  const f = Math.fround;
  const pairs = rope.dims / 2;
  const base = f(rope.frequencyBase);
  const frequencyScale = f(rope.frequencyScale);
  const thetaScale = f(Math.pow(base, f(-2 / rope.dims)));
  const magnitude = ropeMagnitude(rope);
  const factors = rope.frequencyFactors === null ? null : Float32Array.from(rope.frequencyFactors);
  const mix = yarnMix(rope);
  const fill: AngleTable = (position, cosines, sines) => {
    let theta = f(position);
    for (let pair = 0; pair < pairs; pair++) {
      const extrapolated = factors === null ? theta : f(theta / factors[pair]!);
      let angle = f(frequencyScale * extrapolated);
      if (mix !== null) {
        const share = mix[pair]!;
        // One rounding for the first product and the sum: the engine's builds fuse them (FMA).
        angle = f(angle * f(1 - share) + f(extrapolated * share));
      }
      cosines[pair] = f(Math.cos(angle)) * magnitude;
      sines[pair] = f(Math.sin(angle)) * magnitude;
      theta = f(theta * thetaScale);
    }
  };
  return { fill, magnitude };
}

/** The factor on cosines and sines: attnFactor, times YaRN's 1 + 0.1 · ln(1 / frequencyScale) where YaRN is on. */
function ropeMagnitude(rope: RopeDescription): number {
  const f = Math.fround;
  if (rope.extFactor === 0) return f(rope.attnFactor);
  return f(f(rope.attnFactor) * f(1 + f(f(0.1) * f(Math.log(f(1 / f(rope.frequencyScale)))))));
}

/** YaRN's share of extrapolation per pair, f32[dims / 2]; null when YaRN is off. */
function yarnMix(rope: RopeDescription): Float32Array | null {
  if (rope.extFactor === 0) return null;
  const f = Math.fround;
  const { dims, originalContext } = rope;
  // The pair that turns `turns` times over the original context.
  const pairOf = (turns: number): number =>
    f(
      f(dims * f(Math.log(f(originalContext / f(f(turns * 2) * f(Math.PI)))))) /
        f(2 * f(Math.log(f(rope.frequencyBase)))),
    );
  const low = Math.max(0, Math.floor(pairOf(rope.betaFast)));
  const high = Math.min(dims - 1, Math.ceil(pairOf(rope.betaSlow)));
  const width = Math.max(f(0.001), high - low);
  return Float32Array.from({ length: dims / 2 }, (_, pair) => {
    const ramp = f(1 - Math.min(1, Math.max(0, f((pair - low) / width))));
    return f(ramp * f(rope.extFactor));
  });
}

function rotate(
  values: Float32Array,
  positions: Int32Array,
  rope: RopeDescription,
  shape: HeadShape,
  out: Float32Array,
  undo: boolean,
): void {
  const { heads, headDim } = shape;
  const { dims } = rope;
  const width = heads * headDim;
  invariant(dims % 2 === 0 && dims <= headDim, 'rope dims are even and fit a head');
  invariant(values.length === positions.length * width && out.length === values.length, 'rows have their length');
  const pairs = dims / 2;
  const cosines = new Float32Array(pairs);
  const sines = new Float32Array(pairs);
  const { fill, magnitude } = ropeAngles(rope);
  // Undone, a pair comes out magnitude² too large, as cosines and sines carry the magnitude both ways.
  const scale = undo ? 1 / (magnitude * magnitude) : 1;
  const sign = undo ? -scale : 1;
  const step = rope.pairing === 'interleaved' ? 2 : 1;
  const partner = rope.pairing === 'interleaved' ? 1 : pairs;
  if (out !== values) out.set(values);
  for (let token = 0; token < positions.length; token++) {
    fill(positions[token]!, cosines, sines);
    const end = (token + 1) * width;
    for (let head = token * width; head < end; head += headDim) {
      for (let pair = 0, at = head; pair < pairs; pair++, at += step) {
        const x = out[at]!;
        const y = out[at + partner]!;
        const c = cosines[pair]! * scale;
        const s = sines[pair]! * sign;
        out[at] = x * c - y * s;
        out[at + partner] = x * s + y * c;
      }
    }
  }
}
