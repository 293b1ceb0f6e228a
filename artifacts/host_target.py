"""The name of this machine's kind, SYSTEM-CPU, as a package's libraries are keyed by it."""

from __future__ import annotations

import platform
import sys

_SYSTEMS = {"linux": "linux", "android": "linux", "darwin": "macos", "win32": "windows"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def host_target() -> str:
    """A name that no library has where the system or the processor is unknown."""
    system = _SYSTEMS.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{_MACHINES.get(machine, machine)}"
