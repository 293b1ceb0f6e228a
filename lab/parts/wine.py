"""Wine and a screen in memory, Debian's own, in the system; and a Windows of ours in its folder."""

from __future__ import annotations

import sys
from pathlib import Path

from lab import LabError, contained
from lab.apt import are_installed, install_in_system, run
from lab.parts import Part

_PACKAGES = ("wine64", "xvfb")
_SECONDS = "180"
_RUNNER = Path(contained.__file__).parent / "runners/wine.py"


def program(folder: Path, *command: str) -> list[str]:
    """The command that runs a Windows program; it sees this machine's files as drive Z."""
    return [sys.executable, str(_RUNNER), prefix(folder), *command]


def prefix(folder: Path) -> str:
    return str(folder / "prefix")


def _install(folder: Path) -> None:
    install_in_system(_PACKAGES, folder / "apt")
    bounded = [sys.executable, contained.__file__, _SECONDS]
    run(
        ["env", f"TMPDIR={folder}", *bounded, *program(folder, "wineboot", "--init")],
        "Wine makes no Windows",
    )
    if not (folder / "prefix/system.reg").is_file():
        raise LabError("Wine made no Windows: there is no registry in it")


PART = Part("wine", dict.fromkeys(_PACKAGES, ""), _install, lambda: are_installed(_PACKAGES))
