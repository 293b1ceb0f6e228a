"""How many threads this machine is good for."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """One thread for each physical core that this process may run on, as far as it may run."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    share = _cgroup_share()
    return max(1, cores if share is None else min(cores, math.ceil(share)))


def _cgroup_share() -> float | None:
    """How many CPUs' time a container may use, where it is limited (cgroup v2, then v1)."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            fields = " ".join((_CGROUP / name).read_text() for name in names).split()
            quota, period = int(fields[0]), int(fields[1])
        except (OSError, ValueError, IndexError):  # absent, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def _siblings(cpu: int) -> str:
    """What the threads of one core have in common; the CPU itself where the system does not say."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
