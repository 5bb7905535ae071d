// A profile: everything learned once per model that coding and decoding need, as one safetensors file.
// Layout of the file: docs/format/profile.md. Does not know: engines, containers, how a basis is fitted.

import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import type { RopeDescription } from '../rope/description.ts';

/** Which model a profile, a container or a state belongs to. */
export interface ModelIdentity {
  readonly architecture: string;
  readonly name: string;
  readonly geometry: CacheGeometry;
  readonly rope: RopeDescription;
  /** sha256, hex, over the GGUF's metadata and tensor directory. */
  readonly fingerprint: string;
}

/** Where the calibration rows came from. */
export interface Provenance {
  readonly seed: number;
  readonly rows: number;
  readonly heldOutRows: number;
  readonly sinks: number;
  readonly documents: readonly { readonly source: string; readonly sha256: string; readonly tokens: number }[];
  readonly producer: string;
}

/** One measured point of a profile: what a ratio cost on which text. */
export interface QualityPoint {
  readonly ratio: number;
  readonly paperRatio: number;
  readonly effectiveRatio: number;
  readonly klNats: number;
  readonly copyKlNats: number | null;
  readonly top1Agreement: number;
  readonly weights: 'exact' | 'as-is';
  readonly text: string;
  readonly tokens: number;
}

/** One ratio's plans. Ratio is the target given to the allocator, before the entropy stage (paper's kvtc16 = 16). */
export interface RatioPlans {
  readonly ratio: number;
  readonly key: PaperPlan;
  readonly value: PaperPlan;
  /** Predicted relative squared error on held-out rows. */
  readonly keyError: number;
  readonly valueError: number;
}

/** One stream's learned part. */
export interface StreamBasis {
  /** f32[p] */
  readonly mean: Float32Array;
  /** f32[rank], falling. */
  readonly variances: Float32Array;
  /** [rank, p] component-major, orthonormal rows; stored as f16, read by ranges. */
  readonly basis: MatrixSource;
}

/** An opened profile. Holds a file handle: close it. */
export interface Profile {
  readonly path: string;
  /** sha256, hex, over model identity, means and bases: what a container names. Plans and quality may grow without changing it. */
  readonly id: string;
  readonly model: ModelIdentity;
  readonly rank: Readonly<Record<StreamKind, number>>;
  readonly plans: readonly RatioPlans[];
  readonly provenance: Provenance;
  readonly quality: readonly QualityPoint[];
  readonly byteLength: number;
  stream(stream: StreamKind): StreamBasis;
  close(): Promise<void>;
}
