"""This machine's apt and pip go in; an arm64 root with Python, numpy and ONNX Runtime, and an
emulator that runs programs of it, come out. Nothing of it is installed in the system."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edgewright.artifacts.claims import claimed
from edgewright.artifacts.errors import EdgewrightError

# Older emulators crash while ONNX Runtime is imported.
_LEAST_EMULATOR = 8
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_WHEELS = ("onnxruntime", "numpy")
_MANYLINUX = ("2014", *(f"_2_{minor}" for minor in range(17, 37)))
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What is emulated for each instruction set: a processor that has it, and none of those above it.
PROCESSORS = {"neon": "cortex-a72", "neon_dot": "cortex-a76", "neon_i8mm": "neoverse-v1"}


class LabError(EdgewrightError):
    """The machine to test on could not be made."""


@dataclass(frozen=True)
class Arm64Root:
    """What `prepare` leaves in a folder."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def stamp(self) -> Path:
        return self.folder / "made-of.json"

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


def prepare(folder: Path) -> Arm64Root:
    """Made once; made again when another version of ONNX Runtime or numpy is installed here."""
    made = Arm64Root(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: version(name) for name in _WHEELS}
    with claimed(folder):
        if made.stamp.is_file() and json.loads(made.stamp.read_text()) == wanted:
            return made
        for part in ("root", "emulator", "apt"):
            shutil.rmtree(folder / part, ignore_errors=True)
        apt = _Apt(folder / "apt")
        apt.update()
        apt.unpack_with_dependencies(_PACKAGES, made.root)
        apt.unpack_emulator(folder / "emulator")
        _install_wheels(made, wanted)
        made.stamp.write_text(json.dumps(wanted))
    return made


class _Apt:
    """apt with lists, sources and a status of its own: the system's packages are not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "state/status").touch()
        self.release = _os_release()
        self.sources = folder / "sources.list"
        self.sources.write_text(self._sources())
        settings = {
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "state/status",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": "arm64",
            "APT::Architectures": "arm64,amd64",
            "APT::Install-Recommends": "0",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        self.options = [f"-o{key}={value}" for key, value in settings.items()]

    def _sources(self) -> str:
        """The archive that the machine itself uses, for arm64, and its backports."""
        shown = "$(SITE) $(RELEASE) $(COMPONENT) $(CREATED_BY)"
        listed = _run(["apt-get", "indextargets", "--format", shown], "apt lists no sources")
        archives = [
            line.split()[0] for line in listed.splitlines()
            if line.split()[1:] == [self.release, "main", "Packages"]
        ]  # fmt: skip
        if not archives:
            raise LabError(f"apt has no source of {self.release}'s component main; add one")
        signed = f"signed-by={_KEYRING} " if _KEYRING.is_file() else ""
        return (
            f"deb [{signed}arch=arm64,amd64] {archives[0]} {self.release} main\n"
            f"deb [{signed}arch=amd64] {archives[0]} {self.release}-backports main\n"
        )

    def update(self) -> None:
        _run(["apt-get", *self.options, "-qq", "update"], "apt cannot read the archive's lists")

    def unpack_with_dependencies(self, packages: Sequence[str], target: Path) -> None:
        arguments = ["-qq", "--yes", "--download-only", "install", *packages]
        _run(["apt-get", *self.options, *arguments], "apt cannot download an arm64 Python")
        self._unpack(self.folder / "cache/archives", target)

    def unpack_emulator(self, target: Path) -> None:
        """The newest there is: 'qemu-user-static', whose programs may lie in 'qemu-user'."""
        names = ("qemu-user-static", "qemu-user")
        chosen = []
        for name in names:
            shown = _run(
                ["apt-cache", *self.options, "madison", f"{name}:amd64"], "apt-cache fails"
            )
            versions = [line.split("|")[1].strip() for line in shown.splitlines() if "|" in line]
            major = {text: int(text.partition(":")[2].partition(".")[0]) for text in versions}
            newest = max(major, key=lambda text: major[text], default=None)
            if newest is None or major[newest] < _LEAST_EMULATOR:
                raise LabError(
                    f"the archive has {name} {newest}; {_LEAST_EMULATOR} or newer is required"
                )
            chosen.append(f"{name}:amd64={newest}")
        downloads = self.folder / "emulator"
        downloads.mkdir()
        _run(["apt-get", *self.options, "-qq", "download", *chosen], "no emulator", downloads)
        self._unpack(downloads, target)

    @staticmethod
    def _unpack(downloads: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for archive in sorted(downloads.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(target)], "a package cannot be unpacked")


def _os_release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    values = dict(line.partition("=")[::2] for line in lines if "=" in line)
    name = values.get("VERSION_CODENAME", "").strip('"')
    if values.get("ID", "").strip('"') != "debian" or not name or shutil.which("apt-get") is None:
        raise LabError("an arm64 root is made with apt on Debian; run this on such a machine")
    return name


def _install_wheels(made: Arm64Root, wanted: dict[str, str]) -> None:
    minor = made._interpreter().name.removeprefix("python")
    platforms = [f"--platform=manylinux{name}_aarch64" for name in _MANYLINUX]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={minor}", *platforms]
    command += ["--target", str(made.root / "packages")]
    command += [f"{name}=={number}" for name, number in wanted.items()]
    _run(command, "pip cannot install for arm64")


def _run(command: Sequence[str], problem: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise LabError(f"{problem}: {lines[-1]}")
    return done.stdout
