// The library's public face. What is not exported here may change without notice.

export { KvtcError, isKvtcError } from './base/errors.ts';
export type { ErrorCode, ErrorDetails, ErrorKind } from './base/errors.ts';
export type { KvtcEvent, ProgressEvent, RunOptions, WarningEvent } from './base/events.ts';
export type { CacheGeometry, ElementType, LayerRange, StreamKind, TokenRange } from './base/geometry.ts';
export { calibrate } from './cache/calibrate.ts';
export type { CalibrateModelOptions, ModelCalibration } from './cache/calibrate.ts';
export { compress, openCoder, restore } from './cache/coder.ts';
export type { Coder, CoderOptions, CompressCall, RestoreCall } from './cache/coder.ts';
export type { SinkMode, WindowMode } from './cache/chunk-seam.ts';
export type { CompressOptions, CompressResult } from './cache/compress.ts';
export type { LayerRows, RestoreOptions, RestoreResult } from './cache/restore.ts';
export { inspect, verify } from './cache/inspect.ts';
export type { Inspection } from './cache/inspect.ts';
export type { TextGroup } from './calibration/sample.ts';
export { memoryTarget } from './container/target.ts';
export type { ContainerTarget } from './container/types.ts';
export { openModel } from './engines/llama/session.ts';
export type { ContextOptions, DecodeOptions, LlamaContext, LlamaModel } from './engines/llama/session.ts';
export { evaluate } from './evaluation/evaluate.ts';
export type { EvaluateOptions, Evaluation } from './evaluation/evaluate.ts';
export { ablate } from './evaluation/ablation/ablate.ts';
export type { AblateOptions, Ablation } from './evaluation/ablation/ablate.ts';
export { tuneProfile } from './evaluation/tuning/tune.ts';
export type { TuneOptions, Tuning } from './evaluation/tuning/tune.ts';
export { pullModel } from './models/pull.ts';
export { openProfile } from './profile/open-profile.ts';
export type {
  ModelIdentity,
  PaperProfile,
  Profile,
  Provenance,
  QualityPoint,
  RatioPlans,
  StepPoint,
  WtcProfile,
} from './profile/profile.ts';
