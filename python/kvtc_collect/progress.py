"""Progress lines on stderr, with the time that is left. Silent when asked to be."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts steps of equal cost; on a terminal one line is rewritten. Steps found done cost nothing."""

    def __init__(self, label: str, total: int, *, quiet: bool) -> None:
        self._label = label
        self._total = total
        self._quiet = quiet
        self._done = 0
        self._timed = 0
        self._elapsed = 0.0
        self._last = time.monotonic()

    def begin(self) -> None:
        """The work begins now; without it, at construction."""
        self._last = time.monotonic()

    def step(self, *, found: bool = False) -> None:
        """One more step is done. Those ``found`` on disk do not enter the estimate of the time left."""
        now = time.monotonic()
        self._done += 1
        if not found:
            self._timed += 1
            self._elapsed += now - self._last
        self._last = now
        if self._quiet:
            return
        text = f"{self._label} {self._done}/{self._total}"
        if self._timed:
            left = self._elapsed / self._timed * (self._total - self._done)
            text += f"  {self._elapsed:.0f} s, {left:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{text}", end="\n" if self._done == self._total else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
