"""A directory goes in; the exclusive right to write in it comes out, given back when we end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@dataclass(frozen=True)
class Claim:
    """Held through an open descriptor, so that the system releases it however the process dies."""

    descriptor: int
    lock_file: Path | None = None

    def release(self) -> None:
        os.close(self.descriptor)
        if self.lock_file is not None:
            with suppress(OSError):  # someone else waits on it, and will remove it in turn
                self.lock_file.unlink()


if sys.platform == "win32":

    def claim(directory: Path, wait: bool = False) -> Claim | None:
        # Windows locks files only, so the claim is a file inside the directory.
        lock_file = directory / ".lock"
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_BINARY)
        try:
            # LK_LOCK gives up after ten tries, a second apart.
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            os.close(descriptor)
            return None
        return Claim(descriptor, lock_file)

else:

    def claim(directory: Path, wait: bool = False) -> Claim | None:
        """None when another process holds it; OSError where the file system knows no locks."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return Claim(descriptor)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """One writer at a time; where the file system knows no locks, the writers take their chance."""
    held: Claim | None = None
    with suppress(OSError):
        held = claim(directory.resolve(), wait=True)
    try:
        yield
    finally:
        if held is not None:
            held.release()
