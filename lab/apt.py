"""Names of Debian packages go in; the packages' files come out in a folder of ours, or the packages
themselves in the system where that changes none that is there. apt's lists are ours as well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab import LabError

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INSTALLED = "install ok installed"
_SECONDS = 900


class Apt:
    """The sources are the archive that the machine itself uses: its release with the updates, and
    the backports, from which nothing comes that was not asked for. `with` brings the lists, and
    leaves nothing in the folder."""

    def __init__(self, folder: Path, architecture: str, also: Sequence[str] = ()) -> None:
        self.folder = folder
        self.release = _os_release()
        for name in ("lists/partial", "state", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        self.architectures = ",".join((architecture, *also))
        self.archive = self._archive()
        settings = {
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": architecture,
            "APT::Architectures": self.architectures,
            "APT::Install-Recommends": "0",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        bare = {"Dir::State": folder / "state", "Dir::State::status": folder / "state/status"}
        self.options = [f"-o{key}={value}" for key, value in settings.items()]
        # As if nothing were installed: what depends on what is resolved down to the C library.
        self.bare_options = [f"-o{key}={value}" for key, value in (bare | settings).items()]

    def _archive(self) -> str:
        shown = "$(SITE) $(RELEASE) $(COMPONENT) $(CREATED_BY)"
        listed = run(["apt-get", "indextargets", "--format", shown], "apt lists no sources")
        for line in listed.splitlines():
            if line.split()[1:] == [self.release, "main", "Packages"]:
                return line.split()[0].rstrip("/")
        raise LabError(f"apt has no source of {self.release}'s component main; add one")

    def __enter__(self) -> Apt:
        self._update()
        return self

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self.folder)

    def _update(self) -> None:
        signed = f"signed-by={_KEYRING} " if _KEYRING.is_file() else ""
        suites = {name: self.archive for name in ("", "-updates", "-backports")}
        # A mirror has the security archive beside it, or not at all.
        for chosen in (suites | {"-security": f"{self.archive}-security"}, suites):
            lines = [
                f"deb [{signed}arch={self.architectures}] {site} {self.release}{suffix} main\n"
                for suffix, site in chosen.items()
            ]
            (self.folder / "sources.list").write_text("".join(lines))
            try:
                run(
                    ["apt-get", *self.options, "-qq", "update"],
                    "apt cannot read the archive's lists",
                )
                return
            except LabError:
                if chosen is suites:
                    raise

    def unpack_with_dependencies(
        self, packages: Sequence[str], target: Path, *, backports: bool = False, but: str = ""
    ) -> None:
        """`but`: the package of that name is the system's own."""
        suite = ["-t", f"{self.release}-backports"] if backports else []
        arguments = ["-qq", "--yes", "--download-only", *suite, "install", *packages]
        problem = f"apt cannot download {' '.join(packages)}"
        shutil.rmtree(self.folder / "cache/archives", ignore_errors=True)
        (self.folder / "cache/archives/partial").mkdir(parents=True)
        run(["apt-get", *self.bare_options, *arguments], problem)
        for archive in sorted((self.folder / "cache/archives").glob("*.deb")):
            if archive.name.partition("_")[0] != but:
                unpack(archive, target)

    def versions(self, package: str) -> list[str]:
        shown = run(["apt-cache", *self.bare_options, "madison", package], "apt-cache fails")
        return [line.split("|")[1].strip() for line in shown.splitlines() if "|" in line]

    def unpack_alone(self, chosen: Sequence[str], target: Path) -> None:
        downloads = self.folder / "alone"
        downloads.mkdir()
        problem = f"apt cannot download {' '.join(chosen)}"
        run(["apt-get", *self.bare_options, "-qq", "download", *chosen], problem, downloads)
        for archive in sorted(downloads.glob("*.deb")):
            unpack(archive, target)

    def install_in_system(self, packages: Sequence[str]) -> None:
        """Only what is new there: where a package would be upgraded or removed, nothing is done."""
        arguments = ["--no-upgrade", "install", *packages]
        problem = f"apt cannot install {' '.join(packages)}"
        planned = run(["apt-get", *self.options, "--simulate", *arguments], problem)
        if changed := packages_changed(planned):
            raise LabError(f"{' '.join(packages)} would change {', '.join(changed)}")
        if os.geteuid() != 0 and shutil.which("sudo") is None:
            raise LabError(f"{' '.join(packages)} cannot be installed: root is required, or sudo")
        root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
        quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *self.options]
        quiet.append(f"-oDPkg::Lock::Timeout={_SECONDS}")
        run([*quiet, "-qq", "--yes", "--download-only", *arguments], problem)
        _run_to_its_end([*quiet, "-qq", "--yes", *arguments], problem)


def packages_changed(planned: str) -> list[str]:
    """From what apt would do: the packages there that would not stay as they are."""
    found = re.findall(r"^(?:Inst (\S+) \[|Remv (\S+) )", planned, re.MULTILINE)
    return [upgraded or removed for upgraded, removed in found]


def install_in_system(packages: Sequence[str], lists: Path) -> None:
    """For what finds its files only where Debian puts them."""
    if not are_installed(packages):
        with Apt(lists, "amd64") as apt:
            apt.install_in_system(packages)


def are_installed(packages: Sequence[str]) -> bool:
    command = ["dpkg-query", "--show", "--showformat", "${Status}\n", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return done.stdout.splitlines() == [_INSTALLED] * len(packages)


def unpack(archive: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    run(["dpkg-deb", "-x", str(archive), str(target)], "a package cannot be unpacked")


def run(command: Sequence[str], problem: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{problem}: no end in {_SECONDS} s") from None
    _check(done.returncode, done.stderr.strip() or done.stdout, problem)
    return done.stdout


def _run_to_its_end(command: Sequence[str], problem: str) -> None:
    """What ends us does not end this: the system would be left half installed."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        status = process.wait()
        log.seek(0)
        _check(status, log.read(), problem)


def _check(status: int, said: str, problem: str) -> None:
    if status:
        raise LabError(f"{problem}: {(said.strip() or 'no message').splitlines()[-1]}")


def _os_release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    values = dict(line.partition("=")[::2] for line in lines if "=" in line)
    name = values.get("VERSION_CODENAME", "").strip('"')
    if values.get("ID", "").strip('"') != "debian" or not name or shutil.which("apt-get") is None:
        raise LabError("this part is made with apt on Debian; run this on such a machine")
    return name
