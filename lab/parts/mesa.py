"""Vulkan in software: Mesa's lavapipe, from the backports because older ones have no adapter that
WebGPU takes. It is unpacked with all that it needs but the C library."""

from __future__ import annotations

import json
from pathlib import Path

from lab.apt import Apt, LabError
from lab.parts import Part

_LEAST = 25
_LIBRARIES = "root/usr/lib/x86_64-linux-gnu"


def environment(folder: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(folder / _LIBRARIES),
        "VK_ICD_FILENAMES": str(folder / "lavapipe.json"),
        "VK_DRIVER_FILES": str(folder / "lavapipe.json"),
    }


def _install(folder: Path) -> None:
    apt = Apt(folder / "apt", "amd64")
    apt.update()
    found = apt.versions("mesa-vulkan-drivers")
    if not any(int(version.partition(".")[0]) >= _LEAST for version in found):
        raise LabError(f"the archive has Mesa {', '.join(found)}; {_LEAST} or newer is required")
    packages = ("mesa-vulkan-drivers", "libvulkan1")
    apt.unpack_with_dependencies(packages, folder / "root", backports=True, but="libc6")
    (given,) = (folder / "root/usr/share/vulkan/icd.d").glob("lvp_icd*.json")
    driver = json.loads(given.read_text())
    # Its own path is that of a system it is installed in.
    library = folder / _LIBRARIES / Path(driver["ICD"]["library_path"]).name
    driver["ICD"]["library_path"] = str(library)
    (folder / "lavapipe.json").write_text(json.dumps(driver))


PART = Part("mesa", {"mesa-vulkan-drivers": f">={_LEAST}"}, _install)
