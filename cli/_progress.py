"""Progress goes to stderr: a bar on a terminal once work takes over two seconds, else nothing."""

from __future__ import annotations

import sys
import time

_QUIET_SECONDS = 2.0
_WIDTH = 30


class Progress:
    """Called with a stage, how much of it is done, and how much there is."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = 0.0
        self._shown = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._began < _QUIET_SECONDS or now - self._drawn < 0.1:
            return
        self._drawn, self._shown = now, True
        share = done / total if total else 0.0
        filled = int(share * _WIDTH)
        bar = "█" * filled + "·" * (_WIDTH - filled)
        print(f"\r\x1b[K{stage:<22} {bar} {share:4.0%}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def warn(self, message: str) -> None:
        self.finish()
        print(f"warning: {message}", file=sys.stderr, flush=True)
