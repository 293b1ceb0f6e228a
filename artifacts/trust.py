"""Hashes of the native libraries that this machine built go in; "may it be loaded?" comes out.

The list belongs to the machine's user, never to a package: a package cannot speak for itself.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from pathlib import Path

from edgewright.artifacts.claims import claimed
from edgewright.artifacts.errors import EdgewrightError
from edgewright.artifacts.user_dirs import CACHE_VARIABLE, cache_dir

LIST_NAME = "trusted-libraries"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIST_LIMIT_BYTES = 16 << 20
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_BINARY: int = getattr(os, "O_BINARY", 0)

_log = logging.getLogger(__name__)


def record(sha256: str) -> None:
    """Remember a library that this machine built itself; recording it again changes nothing."""
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"not a lower-case sha256: {sha256!r}")
    directory = cache_dir()
    path = directory / LIST_NAME
    try:
        with claimed(directory):
            _append(path, sha256)
    except OSError as error:
        raise EdgewrightError(
            f"{path}: cannot record a library as trusted ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a directory that you can write"
        ) from error


def is_trusted(sha256: str) -> bool:
    """True only for a library in this user's own list, and only if nobody else can write there."""
    try:
        path = cache_dir() / LIST_NAME
        content = _read(path)
    except (OSError, EdgewrightError):
        return False
    return bool(_SHA256.fullmatch(sha256)) and sha256 in _hashes(content)


def _append(path: Path, sha256: str) -> None:
    content = b""
    if path.exists():
        content = _read(path)
        if sha256 in _hashes(content):
            return
        if not content and path.stat().st_size:
            path.unlink()  # others can write to it: what it says is worth nothing, begin again
    # A write that was cut short must not swallow the next line.
    gap = b"\n" if content and not content.endswith(b"\n") else b""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_FOLLOW | _BINARY
    descriptor = os.open(path, flags, 0o600)
    try:
        if sys.platform != "win32":
            os.fchmod(descriptor, 0o600)
        os.write(descriptor, gap + sha256.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    """The list, or nothing when someone else could have written it."""
    descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW | _BINARY)
    with os.fdopen(descriptor, "rb") as file:
        if not _ours_alone(os.fstat(descriptor)):
            _log.warning("%s is ignored: other users can write to it; remove it", path)
            return b""
        return file.read(_LIST_LIMIT_BYTES)


def _ours_alone(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    if sys.platform == "win32":
        return True  # the user's own profile directory carries the access list
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _hashes(content: bytes) -> set[str]:
    lines = content.decode("ascii", errors="replace").splitlines()
    return {line for line in lines if _SHA256.fullmatch(line)}
