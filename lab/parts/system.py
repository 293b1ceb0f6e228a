"""What Debian has for its release, and what finds its files only where Debian puts them: installed
in the system, unless that would change anything there."""

from __future__ import annotations

from pathlib import Path

from lab.apt import Apt, is_installed
from lab.parts import Part


def _part(name: str, *packages: str) -> Part:
    def install(folder: Path) -> None:
        if not is_present():
            apt = Apt(folder / "apt", "amd64")
            apt.update()
            apt.install_in_system(packages)

    def is_present() -> bool:
        return all(is_installed(package) for package in packages)

    return Part(name, dict.fromkeys(packages, ""), install, is_present)


CHROMIUM = _part("chromium", "chromium")
WINE = _part("wine", "wine64", "xvfb")
