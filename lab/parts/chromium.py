"""Chromium, Debian's own, in the system; Vulkan in software comes with it."""

from __future__ import annotations

from pathlib import Path

from lab.apt import are_installed, install_in_system
from lab.parts import Part

PROGRAM = "/usr/bin/chromium"
_PACKAGES = ("chromium",)

# Its own Vulkan, which has no arithmetic in 16 bits.
ENVIRONMENT = {"VK_ICD_FILENAMES": "/usr/lib/chromium/vk_swiftshader_icd.json"}


def _install(folder: Path) -> None:
    install_in_system(_PACKAGES, folder / "apt")


PART = Part("chromium", dict.fromkeys(_PACKAGES, ""), _install, lambda: are_installed(_PACKAGES))
