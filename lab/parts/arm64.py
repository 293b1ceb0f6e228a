"""This machine's apt and pip go in; an arm64 root with Python, numpy and ONNX Runtime, and an
emulator that runs programs of it, come out. Nothing of it is installed in the system."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lab import LabError
from lab.apt import Apt, run
from lab.parts import Part
from lab.parts.wheels import RUNTIME

# Older emulators crash while ONNX Runtime is imported.
_LEAST_EMULATOR = 8
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_WHEELS = {"onnxruntime": version("onnxruntime"), **RUNTIME}  # as they are here
_MANYLINUX = ("2014", *(f"_2_{minor}" for minor in range(17, 37)))

# What is emulated for each instruction set: a processor that has it, and none of those above it.
PROCESSORS = {"neon": "cortex-a72", "neon_dot": "cortex-a76", "neon_i8mm": "neoverse-v1"}


@dataclass(frozen=True)
class Arm64Root:
    """What is in the folder of the part."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def python(self, isa: str, *arguments: str) -> list[str]:
        """The command that runs Python on an arm64 processor; it sees this machine's files too."""
        (emulator,) = (self.folder / "emulator").glob("usr/bin/qemu-aarch64-static")
        packages = f"PYTHONPATH={self.root / 'packages'}"
        machine = (str(emulator), "-cpu", PROCESSORS[isa], "-L", str(self.root), "-E", packages)
        return [*machine, str(self._interpreter()), *arguments]

    def _interpreter(self) -> Path:
        found = sorted(path for path in self.root.glob("usr/bin/python3.*") if path.is_file())
        if not found:
            raise LabError(f"{self.root}: no Python was unpacked there; remove {self.folder}")
        return found[0]


def _install(folder: Path) -> None:
    made = Arm64Root(folder)
    with Apt(folder / "apt", "arm64", also=("amd64",)) as apt:
        apt.unpack_with_dependencies(_PACKAGES, made.root)
        _unpack_emulator(apt, folder / "emulator")
    _install_wheels(made)


def _unpack_emulator(apt: Apt, target: Path) -> None:
    """The newest there is: 'qemu-user-static', whose programs may lie in 'qemu-user'."""
    chosen = []
    for name in ("qemu-user-static", "qemu-user"):
        versions = apt.versions(f"{name}:amd64")
        major = {text: int(text.partition(":")[2].partition(".")[0]) for text in versions}
        newest = max(major, key=lambda text: major[text], default=None)
        if newest is None or major[newest] < _LEAST_EMULATOR:
            raise LabError(
                f"the archive has {name} {newest}; {_LEAST_EMULATOR} or newer is required"
            )
        chosen.append(f"{name}:amd64={newest}")
    apt.unpack_alone(chosen, target)


def _install_wheels(made: Arm64Root) -> None:
    minor = made._interpreter().name.removeprefix("python")
    platforms = [f"--platform=manylinux{name}_aarch64" for name in _MANYLINUX]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={minor}", *platforms]
    command += ["--target", str(made.root / "packages")]
    command += [f"{name}=={number}" for name, number in _WHEELS.items()]
    run(command, "pip cannot install for arm64")


PART = Part("arm64", _WHEELS, _install)
