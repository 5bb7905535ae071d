// A profile: everything learned once per model that coding and decoding need, as one safetensors file.
// Layout of the file: docs/format/profile.md. Does not know: engines, containers, how a basis is fitted.

import type { CacheGeometry, StreamKind } from '../base/geometry.ts';
import type { PaperPlan } from '../codec/paper/plan.ts';
import type { StreamTables, WtcParameters } from '../codec/wtc/plan.ts';
import type { MatrixSource } from '../linalg/backend.ts';
import type { RopeDescription } from '../rope/description.ts';
import type { TuningRecord } from './tuning.ts';

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
  /** What told the output's sensitivity to errors (docs/format/sensitivity.md); profiles of wtc alone have it. */
  readonly sensitivity?: 'none' | 'forward' | 'gradient' | undefined;
  /** Values of all the model's tensors, to compare the profile's size with; absent in the first profiles. */
  readonly modelParameters?: number | undefined;
}

/** One measured point of a profile: what a ratio cost on which text. */
export interface QualityPoint {
  readonly ratio: number;
  /** Of wtc: the step of keys that the ratio was coded with. */
  readonly step?: number | undefined;
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

/** One measured setting of a wtc profile. Ratio: 16-bit values over the coded bytes of held-out rows. */
export interface StepPoint extends WtcParameters {
  readonly ratio: number;
  /** Coded bits per token of both streams, measured on held-out rows in chunks of the usual length. */
  readonly bitsPerToken: number;
  /** How far predicted importances move a token's step (docs/format/profile.md); 0 where all tokens are coded alike. */
  readonly exponent: number;
}

/** What a wtc profile knows of tokens' importances: weights over features of their leading coefficients and recency. */
export interface TokenPredictor {
  readonly components: number;
  /** Whether a token's nearness to the end is among the features. */
  readonly recency: boolean;
  /** f32[components]: standard deviations of the leading coefficients. */
  readonly deviations: Readonly<Record<StreamKind, Float32Array>>;
  /** Per predicted stream f32[4 · components + 3], one more with recency: weights of the features, then the bias. Mean 0. */
  readonly weights: Readonly<Record<StreamKind, Float32Array>>;
}

/**
 * What token ids tell of coefficients: z = features · [own embedding, predecessor's] − offsets, each embedding over its
 * root mean square, and expected · z are the leading coefficients to expect.
 */
export interface TokenMeans {
  /** Numbers in z. */
  readonly dims: number;
  /** Numbers of one embedding. */
  readonly width: number;
  /** [dims, 2 · width] */
  readonly features: MatrixSource;
  /** f32[dims] */
  readonly offsets: Float32Array;
  /** [leading components, dims] */
  readonly expected: Readonly<Record<StreamKind, MatrixSource>>;
}

/** One stream's learned part, for the paper's codec. */
export interface StreamBasis {
  /** f32[p] */
  readonly mean: Float32Array;
  /** f32[rank], falling. */
  readonly variances: Float32Array;
  /** [rank, p] component-major, orthonormal rows; stored as f16, read by ranges. */
  readonly basis: MatrixSource;
}

/** What an error of a token costs: e·M·eᵀ, M symmetric, one block a layer and head (docs/format/profile.md). */
export interface HeadMetric {
  readonly heads: number;
  readonly headDim: number;
  /** f32[heads, headDim · (headDim + 1) / 2]: lower triangles, row by row. */
  readonly packed: Float32Array;
}

/** One stream of an opened profile, whatever its codec. */
export interface StreamTransform {
  /** f32[p] */
  readonly mean: Float32Array;
  /** f32[rank], falling. */
  readonly variances: Float32Array;
  /** [rank, p], component-major: coefficient = row · (x − mean); or the metric that it follows from with the synthesis. */
  readonly analysis: MatrixSource | HeadMetric;
  /** [rank, p], component-major: x ≈ mean + Σ coefficient · row. The paper's basis is both. */
  readonly synthesis: MatrixSource;
}

/** What profiles of all codecs have. Holds a file handle: close it. */
interface OpenedProfile {
  readonly path: string;
  /** sha256, hex, over model identity and all tensors: what a container names. Plans, steps and quality may grow without changing it. */
  readonly id: string;
  readonly model: ModelIdentity;
  readonly rank: Readonly<Record<StreamKind, number>>;
  readonly provenance: Provenance;
  readonly quality: readonly QualityPoint[];
  readonly byteLength: number;
  stream(stream: StreamKind): StreamTransform;
  close(): Promise<void>;
}

/** A profile of the published codec: format version 1. */
export interface PaperProfile extends OpenedProfile {
  readonly codec: 'kvtc-paper';
  readonly plans: readonly RatioPlans[];
}

/** A profile of weighted transform coding: format version 2, or 3 where it has token means. */
export interface WtcProfile extends OpenedProfile {
  readonly codec: 'wtc';
  readonly tables: Readonly<Record<StreamKind, StreamTables>>;
  /** Rising ratios. */
  readonly steps: readonly StepPoint[];
  readonly predictor: TokenPredictor | null;
  /** What token ids alone tell; null where coefficients are centred on one mean. */
  readonly tokenMeans: TokenMeans | null;
  /** How the steps were chosen by measured loss; null where they never were. */
  readonly tuning: TuningRecord | null;
}

/** An opened profile: it belongs to one codec. */
export type Profile = PaperProfile | WtcProfile;
