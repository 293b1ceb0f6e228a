"""What the rooms log, and text that the terminal cannot write, go in; plain lines come out."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper


def prepare_terminal() -> None:
    """Warnings of the rooms become lines on stderr; a character unknown there becomes a `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    log = logging.getLogger("edgewright")
    if not any(isinstance(handler, _WarningLines) for handler in log.handlers):
        log.addHandler(_WarningLines(logging.WARNING))
        log.propagate = False


class _WarningLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"warning: {' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)
