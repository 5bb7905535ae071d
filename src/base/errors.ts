// Coded errors: every failure that a caller can cause or meet has a stable code, listed in docs/errors.md.
// Does not know: which room throws what, how the CLI prints it (exit codes come from `kind`).

/** What a code means for the caller: a usage mistake, bad input bytes or a mismatch, or a failure of the run. */
export type ErrorKind = 'usage' | 'input' | 'failure';

/** All codes, with the kind that decides the CLI's exit status (usage 2, input 3, failure 1). Codes are never renamed. */
export const ERROR_KINDS = {
  KVTC_OPTION_INVALID: 'usage',
  KVTC_FILE_NOT_FOUND: 'usage',
  KVTC_PROMPT_EMPTY: 'usage',
  KVTC_PROMPT_TOO_LONG: 'usage',
  KVTC_PLAN_MISSING: 'usage',
  KVTC_QUALITY_UNKNOWN: 'usage',
  KVTC_CALIBRATION_TEXT_SHORT: 'usage',
  KVTC_MODEL_UNKNOWN: 'usage',

  KVTC_CONTAINER_MAGIC: 'input',
  KVTC_CONTAINER_VERSION: 'input',
  KVTC_CONTAINER_RESERVED: 'input',
  KVTC_CONTAINER_TRUNCATED: 'input',
  KVTC_CONTAINER_CHECKSUM: 'input',
  KVTC_CONTAINER_LIMIT: 'input',
  KVTC_CONTAINER_MALFORMED: 'input',
  KVTC_CODEC_UNKNOWN: 'input',
  KVTC_CHUNK_MALFORMED: 'input',
  KVTC_PROFILE_MALFORMED: 'input',
  KVTC_PROFILE_VERSION: 'input',
  KVTC_PROFILE_MISMATCH: 'input',
  KVTC_MODEL_MISMATCH: 'input',
  KVTC_GGUF_MALFORMED: 'input',
  KVTC_STATE_MALFORMED: 'input',
  KVTC_STATE_UNSUPPORTED: 'input',
  KVTC_STATE_MISMATCH: 'input',
  KVTC_ROPE_UNSUPPORTED: 'input',
  KVTC_MODEL_UNSUPPORTED: 'input',
  KVTC_ROWS_NOT_FINITE: 'input',
  KVTC_MOMENTS_MALFORMED: 'input',
  KVTC_MOMENTS_MISMATCH: 'input',
  KVTC_MOMENTS_OVERFLOW: 'input',
  KVTC_SENSITIVITY_MALFORMED: 'input',
  KVTC_DOWNLOAD_CHECKSUM: 'input',
  KVTC_RUN_MALFORMED: 'input',
  KVTC_TASK_MALFORMED: 'input',

  KVTC_ENGINE_MISSING: 'failure',
  KVTC_ENGINE_VERSION: 'failure',
  KVTC_ENGINE_FAILED: 'failure',
  KVTC_BACKEND_FAILED: 'failure',
  KVTC_DOWNLOAD_FAILED: 'failure',
  KVTC_CORPUS_MISSING: 'failure',
  KVTC_WRITE_FAILED: 'failure',
  KVTC_ABORTED: 'failure',
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERROR_KINDS;

/** Facts behind an error; put units in the names (`offsetBytes`, `neededBytes`). */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | bigint | null | undefined>>;

/** The one error class of the library. Test with `isKvtcError(error, code)`, not with `instanceof` or message text. */
export class KvtcError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, options: { cause?: unknown } = {}) {
    super(message, options);
    this.name = 'KvtcError';
    this.code = code;
    this.details = details;
  }
}

/** True when `error` is a KvtcError, of the given code where one is given. */
export function isKvtcError(error: unknown, code?: ErrorCode): error is KvtcError {
  return error instanceof KvtcError && (code === undefined || error.code === code);
}

/** Throws a plain Error for a programmer's mistake. Must not be reachable from input bytes. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`kvtc invariant: ${message}`);
}
