import type { RopeDescription } from '../rope/description.ts';
const f = Math.fround;
function angles(d: RopeDescription, position: number): { cos: Float64Array; sin: Float64Array; mscale: number } {
  const half = d.dims / 2;
  const cos = new Float64Array(half),
    sin = new Float64Array(half);
  const corr = (rot: number) =>
    (d.dims * Math.log(d.originalContext / (rot * 2 * Math.PI))) / (2 * Math.log(d.frequencyBase));
  const low = Math.max(0, Math.floor(corr(d.betaFast))),
    high = Math.min(d.dims - 1, Math.ceil(corr(d.betaSlow)));
  const scale = f(Math.pow(f(d.frequencyBase), f(-2 / d.dims)));
  let theta = f(position);
  let mscale = d.attnFactor;
  if (d.extFactor !== 0) mscale *= 1 + 0.1 * Math.log(1 / d.frequencyScale);
  for (let i = 0; i < half; i++) {
    const extrap = f(theta / f(d.frequencyFactors?.[i] ?? 1));
    const interp = f(f(d.frequencyScale) * extrap);
    let angle = interp;
    if (d.extFactor !== 0) {
      const y = (i - low) / Math.max(0.001, high - low);
      const mix = f((1 - Math.min(1, Math.max(0, y))) * d.extFactor);
      angle = f(f(interp * f(1 - mix)) + f(extrap * mix));
    }
    cos[i] = Math.cos(angle);
    sin[i] = Math.sin(angle);
    theta = f(theta * scale);
  }
  return { cos, sin, mscale };
}
export function rotateHead(
  d: RopeDescription,
  row: Float32Array,
  headDim: number,
  position: number,
  undo: boolean,
): void {
  const { cos, sin, mscale } = angles(d, position);
  const half = d.dims / 2,
    k = undo ? 1 / mscale : mscale;
  for (let h = 0; h < row.length; h += headDim)
    for (let i = 0; i < half; i++) {
      const a = h + (d.pairing === 'interleaved' ? 2 * i : i),
        b = d.pairing === 'interleaved' ? a + 1 : a + half;
      const s = undo ? -sin[i]! : sin[i]!,
        x = row[a]!,
        y = row[b]!;
      row[a] = k * (x * cos[i]! - y * s);
      row[b] = k * (x * s + y * cos[i]!);
    }
}
