"""A package's weights go in; what the system keeps of their files comes to lie in large pages.

Weights are read through the page table, all of them for every token. With pages of 4 kB, looking
those up takes a quarter to a third of the time; Linux keeps a file in pages of 2 MB if it is first
read through a mapping that asks for them. What was read or written otherwise stays in small ones:
that is dropped and read again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgewright.runtime.process_memory import available_bytes, bytes_in_large_pages

_PAGE_BYTES = 2 << 20
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LEAST_SHARE = 0.5  # of a file, or its system has no large pages for files
_TOGETHER = 128  # files that are open at the same time


def read_into_large_pages(files: Sequence[Path]) -> bool:
    """Whether they lie in large pages now. It reads all of the files, so not where memory is short;
    and it stops at the first that does not come to lie in large pages."""
    try:
        large = [path for path in files if path.stat().st_size >= _PAGE_BYTES]
        size = sum(path.stat().st_size for path in large)
        if not large or not _offered() or size > available_bytes() // 2:
            return False
        return all(_settle(large[i : i + _TOGETHER]) for i in range(0, len(large), _TOGETHER))
    except OSError:  # it is no more than a wish: opening the package tells what is wrong with it
        return False


def _offered() -> bool:
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _settle(files: Sequence[Path]) -> bool:
    small = _read(files)
    return not small or not (_read_again(small[:1]) or _read_again(small[1:]))


def _read(files: Sequence[Path]) -> list[Path]:
    """Those that lie in small pages nevertheless."""
    with ExitStack() as opened:
        for path in files:
            file = opened.enter_context(path.open("rb"))
            mapping = opened.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            mapping.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, len(mapping), _PAGE_BYTES):
                mapping[at]
        found = bytes_in_large_pages()
    return [p for p in files if found.get(os.path.realpath(p), 0) < p.stat().st_size * _LEAST_SHARE]


def _read_again(files: Sequence[Path]) -> list[Path]:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _read(files)
