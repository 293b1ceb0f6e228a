"""A path from a manifest goes in; a path that means one file inside a package comes out.

The rules are those of the strictest system, so that a package opens wherever it is copied to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.strict_json import Text

# No leading dot (so neither `..` nor hidden files), no backslash, colon, space or control
# character, no trailing dot (Windows drops it).
_SEGMENT = r"[A-Za-z0-9_](?:[A-Za-z0-9._+=@-]*[A-Za-z0-9_+=@-])?"
# Windows opens a device for these names, whatever the ending. Spelt out, because the JSON
# Schema carries this pattern to languages that know no (?i:…).
_DEVICE = "[cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL]|(?:[cC][oO][mM]|[lL][pP][tT])[0-9]"
PATTERN = rf"(?!(?:.*/)?(?:{_DEVICE})(?:\.|/|$)){_SEGMENT}(?:/{_SEGMENT}){{0,7}}"
LIMIT = 240

PackagePath = Annotated[str, Text(LIMIT, PATTERN, "a plain path inside the package")]


def check_path(path: str) -> str:
    if len(path) > LIMIT or not re.fullmatch(PATTERN, path):
        raise PackageError(
            f"{path!r:.80} is not a path inside a package: up to eight names of letters, digits "
            "and ._+=@- with / between them are required"
        )
    return path


def check_together(paths: Iterable[str]) -> None:
    """Refuse paths that would meet on a system that ignores case, or where one is a folder."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(path.lower(), path)
        if other != path:
            raise PackageError(f"{other} and {path} differ only in case: some systems mix them up")
    for path in seen:
        for cut in (n for n, letter in enumerate(path) if letter == "/"):
            if path[:cut] in seen:
                raise PackageError(f"{seen[path[:cut]]} is both a file and a folder")


def locate(root: Path, path: str) -> tuple[Path, os.stat_result]:
    """The regular file at `path` below `root`, reached through no link."""
    here = root
    *folders, name = check_path(path).split("/")
    try:
        for folder in folders:
            here = here / folder
            mode = os.lstat(here).st_mode
            if not stat.S_ISDIR(mode):
                raise _not_plain(root, path, here, mode)
        here = here / name
        status = os.lstat(here)
    except FileNotFoundError:
        raise PackageError(f"{root}: {path} is missing; copy or export the package again") from None
    except OSError as error:
        raise PackageError(f"{root}: cannot reach {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise _not_plain(root, path, here, status.st_mode)
    return here, status


def _not_plain(root: Path, path: str, here: Path, mode: int) -> PackageError:
    kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
    where = here.relative_to(root).as_posix()
    return PackageError(f"{root}: {where} is {kind}; {path} must be a plain file in plain folders")
