"""Progress goes to stderr: a bar on a terminal once work takes over two seconds, else nothing."""

from __future__ import annotations

import sys
import time

_QUIET_SECONDS = 2.0
_WIDTH = 30
# Before this much of a stage is done, what is left of it is anyone's guess.
_LEAST_SHARE = 0.01


class Progress:
    """Called with a stage, how much of it is done, and how much there is."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = 0.0
        self._shown = False
        self._stage = ""
        self._entered = (self._began, 0.0)  # when this stage began, and how much was done then

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        share = done / total if total else 0.0
        if stage != self._stage:
            self._stage, self._entered = stage, (now, share)
        if not sys.stderr.isatty() or now - self._began < _QUIET_SECONDS or now - self._drawn < 0.1:
            return
        self._drawn, self._shown = now, True
        filled = int(share * _WIDTH)
        bar = "█" * filled + "·" * (_WIDTH - filled)
        left = self._left(now, share)
        print(f"\r\x1b[K{stage:<22} {bar} {share:4.0%}{left}", end="", file=sys.stderr, flush=True)

    def _left(self, now: float, share: float) -> str:
        began, before = self._entered
        seconds, made = now - began, share - before
        if seconds < _QUIET_SECONDS or made < _LEAST_SHARE or share >= 1:
            return ""
        return f", {duration(seconds * (1 - share) / made)} left"

    def finish(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def warn(self, message: str) -> None:
        self.finish()
        print(f"warning: {message}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """As much of it as a person wants to know."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
