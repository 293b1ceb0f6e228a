"""A part is something that an environment needs and pip does not bring with us: each file here says
which versions, how it is installed, and where in its folder things lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgewright.artifacts.claims import claimed


@dataclass(frozen=True)
class Part:
    """`install` finds an empty folder. What it puts into the system, `is_present` looks for."""

    name: str
    pins: Mapping[str, str]
    install: Callable[[Path], None]
    is_present: Callable[[], bool] = field(default=lambda: True)


def ensure(part: Part, root: Path) -> Path:
    """The part's folder; it is made again when other versions are asked for than it was made of."""
    folder = root / part.name
    stamp = folder / "made-of.json"
    root.mkdir(parents=True, exist_ok=True)
    with claimed(root):
        if stamp.is_file() and json.loads(stamp.read_text()) == part.pins and part.is_present():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        part.install(folder)
        stamp.write_text(json.dumps(part.pins))
    return folder
