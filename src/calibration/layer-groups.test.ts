import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from '../base/random.ts';
import { openGgmlBackend } from '../linalg/ggml/backend.ts';
import { fitBasis } from './basis.ts';
import { fitLayerGroups } from './layer-groups.ts';
import { accumulateMoments, createMoments, fitMomentsFrame } from './moments.ts';

const WIDTH = 48;
const ROWS = 600;

/** Rows whose features share a few causes, so that joining groups pays. */
function rows(): Float32Array {
  const random = seededRandom(5);
  const mixing = Float32Array.from({ length: 6 * WIDTH }, () => random.normal());
  const out = new Float32Array(ROWS * WIDTH);
  for (let r = 0; r < ROWS; r++) {
    const causes = Array.from({ length: 6 }, () => random.normal());
    for (let c = 0; c < WIDTH; c++) {
      out[r * WIDTH + c] = causes.reduce(
        (sum, cause, i) => sum + cause * mixing[i * WIDTH + c]!,
        3 + 0.1 * random.normal(),
      );
    }
  }
  return out;
}

test('a basis by groups is orthonormal, keeps to its groups, falls in variance, and captures less than a joint one', async () => {
  const backend = openGgmlBackend({ threads: 1 });
  try {
    const values = rows();
    const moments = createMoments(fitMomentsFrame(values, ROWS, WIDTH, 'k'));
    await accumulateMoments(moments, values, ROWS, { backend, precision: 'f32' });
    const joint = await fitBasis(moments, { rank: 12, backend });
    const captured = ({ variances }: { variances: Float32Array }): number => variances.reduce((sum, v) => sum + v, 0);
    // 48 features in groups of 20, 20 and 8.
    const grouped = await fitLayerGroups(moments, 20, { rank: 12, backend });
    assert.deepEqual([grouped.rank, grouped.basis.length], [12, 12 * WIDTH]);
    assert.ok(grouped.variances.every((v, i) => i === 0 || v <= grouped.variances[i - 1]!));
    assert.deepEqual(grouped.mean, joint.mean);
    assert.ok(Math.abs(grouped.totalEnergy / joint.totalEnergy - 1) < 1e-9);
    assert.ok(captured(grouped) < 0.999 * captured(joint) && captured(grouped) > 0.3 * captured(joint));
    for (let i = 0; i < 12; i++) {
      const row = grouped.basis.subarray(i * WIDTH, (i + 1) * WIDTH);
      const touched = new Set([...row].flatMap((value, c) => (value === 0 ? [] : [Math.floor(c / 20)])));
      assert.equal(touched.size, 1);
      for (let j = 0; j <= i; j++) {
        const product = row.reduce((sum, value, c) => sum + value * grouped.basis[j * WIDTH + c]!, 0);
        assert.ok(Math.abs(product - (i === j ? 1 : 0)) < 1e-5);
      }
    }
    // One group of everything is the joint basis.
    const all = await fitLayerGroups(moments, WIDTH, { rank: 12, backend });
    assert.deepEqual(all.variances, joint.variances);
    assert.deepEqual(all.basis, joint.basis);
  } finally {
    backend.close();
  }
});
