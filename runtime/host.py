"""What this machine is: the op-library target it can load, and how many threads it is good for."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_SYSTEMS = {"linux": "linux", "android": "linux", "darwin": "macos", "win32": "windows"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_CPUS = Path("/sys/devices/system/cpu")


def host_target() -> str:
    """The key of this machine's library in a package; one that no package has when unknown."""
    system = _SYSTEMS.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    return f"{system}-{_MACHINES.get(machine, machine)}"


def default_threads() -> int:
    """One thread for each physical core that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, len(cores))


def _siblings(cpu: int) -> str:
    """What the threads of one core have in common; the CPU itself where the system does not say."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
