"""The environment goes in; the directory where this user's caches and trust list live comes out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edgewright.artifacts.errors import EdgewrightError

CACHE_VARIABLE = "EDGEWRIGHT_CACHE"


def cache_dir() -> Path:
    """Made on first use, readable by its owner alone."""
    directory = locate_cache(os.environ, sys.platform)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgewrightError(
            f"{directory}: cannot make the cache directory ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a directory that you can write"
        ) from error
    return directory


def locate_cache(environment: Mapping[str, str], platform: str) -> Path:
    """$EDGEWRIGHT_CACHE, else what the platform's own conventions name."""
    if chosen := environment.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    if platform == "win32":
        return _absolute(environment, "LOCALAPPDATA", "AppData/Local") / "edgewright" / "Cache"
    if platform == "darwin":
        return _home() / "Library" / "Caches" / "edgewright"
    return _absolute(environment, "XDG_CACHE_HOME", ".cache") / "edgewright"


def _absolute(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    # The XDG rules say to ignore a relative path: it would mean another place in every directory.
    path = Path(environment.get(variable, ""))
    return path if path.is_absolute() else _home() / below_home


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise EdgewrightError(
            f"this user has no home directory; set {CACHE_VARIABLE} to a directory for caches"
        ) from error
