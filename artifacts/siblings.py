"""The place where a directory shall stand goes in; a temporary directory beside it comes out.

A sibling is claimed for as long as its process lives, so that the next writer can tell one that a
dead process left behind from one that is being written.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

from edgewright.artifacts.claims import Claim, claim
from edgewright.artifacts.errors import PackageError

_TRIES = 100


class Sibling:
    """A temporary directory beside `out`, gone or renamed to `out` in the end."""

    def __init__(self, out: Path) -> None:
        self._parents = _make_parents(out)
        self._claim: Claim | None = None
        try:
            self.path = self._make(out)
        except BaseException:
            self._remove_parents()
            raise

    def move_to(self, out: Path) -> None:
        if self._claim is not None and self._claim.lock_file is not None:
            self._release()  # Windows moves no directory that holds an open file
        # rename() replaces an empty directory and nothing else: what stands there is never lost.
        if os.path.lexists(out):
            raise FileExistsError(f"{out} exists")
        os.rename(self.path, out)
        self._release()

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()
        self._remove_parents()

    def _make(self, out: Path) -> Path:
        for _ in range(_TRIES):
            path = out.with_name(f".tmp-{out.name}-{secrets.token_hex(6)}")
            os.mkdir(path)
            try:
                self._claim = claim(path)
            except FileNotFoundError:
                continue  # swept before we could claim it
            except OSError:
                return path  # no locks here: then nobody sweeps either
            if self._claim is not None and path.is_dir():
                return path
            self._release()
        raise PackageError(f"{out.parent}: another process removes every temporary directory here")

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _remove_parents(self) -> None:
        for parent in reversed(self._parents):
            with suppress(OSError):  # not empty: someone else uses it by now
                parent.rmdir()


def sweep(out: Path) -> None:
    """Remove what processes that died while writing `out` have left beside it."""
    named = re.compile(rf"\.tmp-{re.escape(out.name)}-[0-9a-f]{{12}}")
    try:
        entries = [entry for entry in out.parent.iterdir() if named.fullmatch(entry.name)]
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            if not _our_directory(entry):
                continue
            held = claim(entry)
            if held is None:
                continue  # its writer lives
            if held.lock_file is not None:
                held.release()
            shutil.rmtree(entry, ignore_errors=True)
            if held.lock_file is None:
                held.release()


def _our_directory(path: Path) -> bool:
    status = os.lstat(path)
    ours = sys.platform == "win32" or status.st_uid == os.geteuid()
    return stat.S_ISDIR(status.st_mode) and ours


def _make_parents(out: Path) -> list[Path]:
    """The parents that were missing, outermost first; they exist afterwards."""
    missing = [parent for parent in reversed(out.parents) if not parent.exists()]
    made: list[Path] = []
    try:
        for parent in missing:
            parent.mkdir(exist_ok=True)
            made.append(parent)
    except BaseException:
        for parent in reversed(made):
            parent.rmdir()
        raise
    return made
