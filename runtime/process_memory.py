"""This process goes in; its memory, and the bytes that a call reads through maps, come out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc/self")
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 1 << 20
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)")


@dataclass(frozen=True)
class ProcessMemory:
    """None where this system does not say."""

    peak_bytes: int | None  # the most that was resident, mapped files included
    private_bytes: int | None  # resident now and in no file

    @classmethod
    def read(cls) -> ProcessMemory:
        status = _PROC / "status"
        if not status.exists():
            return cls(_peak_from_rusage(), None)
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return cls(_kilobytes(fields.get("VmHWM")), _kilobytes(fields.get("RssAnon")))


def _kilobytes(field: str | None) -> int | None:
    return None if field is None else int(field.split()[0]) * 1024


def _peak_from_rusage() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes


def bytes_read_through_maps(folder: Path, call: Callable[[], object]) -> int | None:
    """How many bytes of the files mapped from `folder` one call reads, in whole pages.

    The processor marks each page it reads in the page table; the marks are cleared, the call made,
    and the marks counted. A page has 4 kB, or 2 MB where the system found it worth while. None
    where the system does not show them (it takes Linux).
    """
    clear = _PROC / "clear_refs"
    if not clear.exists():
        return None
    call()  # faults the pages in: a fault brings in neighbours that nobody reads
    try:
        clear.write_text("1")
        call()
        inside = os.path.realpath(folder) + os.sep
        return sum(
            size for path, size in _mapped_bytes("Referenced:").items() if path.startswith(inside)
        )
    except OSError:
        return None  # a sandbox may forbid it


def bytes_in_large_pages() -> Mapping[str, int]:
    """Of each file, as far as this process has mapped and read it."""
    return _mapped_bytes("FilePmdMapped:")


def available_bytes() -> int:
    """What could be had without swapping; 0 where the system does not say."""
    try:
        lines = (_PROC.parent / "meminfo").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return _kilobytes(fields.get("MemAvailable")) or 0


@cache
def return_large_blocks() -> None:
    """Large blocks go back to the system when they are freed. glibc's malloc would begin to keep
    them after the first, between small ones that hold them fast: up to 60 MB of a prefill."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _mapped_bytes(field: str) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    path = ""
    with (_PROC / "smaps").open() as lines:
        for line in lines:
            if mapping := _MAPPING.match(line):
                path = mapping[1]
            elif line.startswith(field):
                found[path] += int(line.split()[1]) * 1024
    return found
