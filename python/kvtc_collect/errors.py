"""Errors a user can cause or meet. Codes and exit statuses are those of ``docs/errors.md``."""

from __future__ import annotations

EXIT_STATUS: dict[str, int] = {
    "KVTC_OPTION_INVALID": 2,
    "KVTC_FILE_NOT_FOUND": 2,
    "KVTC_CALIBRATION_TEXT_SHORT": 2,
    "KVTC_GGUF_MALFORMED": 3,
    "KVTC_MODEL_UNSUPPORTED": 3,
    "KVTC_ROPE_UNSUPPORTED": 3,
    "KVTC_ROWS_NOT_FINITE": 3,
    "KVTC_ENGINE_MISSING": 1,
    "KVTC_ENGINE_FAILED": 1,
    "KVTC_WRITE_FAILED": 1,
    "KVTC_ABORTED": 1,
}


class CollectError(Exception):
    """A failure with a stable code. The message says what, where, got and expected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def exit_status(self) -> int:
        """What the process leaves with: 2 usage, 3 bad input, 1 failure."""
        return EXIT_STATUS[self.code]
