"""Vulkan in software: Mesa's lavapipe, from the backports because older ones have no adapter that
WebGPU takes. It is unpacked with all that it needs but the C library."""

from __future__ import annotations

import json
from pathlib import Path

from lab import LabError
from lab.apt import Apt
from lab.parts import Part

_PACKAGES = ("mesa-vulkan-drivers", "libvulkan1")
_LEAST = 25
_LIBRARIES = "root/usr/lib/x86_64-linux-gnu"


def environment(folder: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(folder / _LIBRARIES),
        "VK_ICD_FILENAMES": str(folder / "lavapipe.json"),
        "MESA_SHADER_CACHE_DIR": str(folder / "shaders"),
    }


def _install(folder: Path) -> None:
    with Apt(folder / "apt", "amd64") as apt:
        found = apt.versions(_PACKAGES[0])
        if not any(int(version.partition(".")[0]) >= _LEAST for version in found):
            raise LabError(f"the archive has Mesa {', '.join(found)}; {_LEAST} is required")
        apt.unpack_with_dependencies(_PACKAGES, folder / "root", backports=True, but="libc6")
    (given,) = (folder / "root/usr/share/vulkan/icd.d").glob("lvp_icd*.json")
    driver = json.loads(given.read_text())
    # Its own path is that of a system it is installed in.
    library = folder / _LIBRARIES / Path(driver["ICD"]["library_path"]).name
    driver["ICD"]["library_path"] = str(library)
    (folder / "lavapipe.json").write_text(json.dumps(driver))


PART = Part("mesa", {_PACKAGES[0]: f">={_LEAST}"}, _install)
