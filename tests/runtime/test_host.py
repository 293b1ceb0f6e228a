"""Threads: one a physical core, within what the container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgewright.runtime import host


@pytest.fixture
def eight_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two threads each; the folder stands for /sys/fs/cgroup."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(host, "_CPUS", tmp_path)
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return tmp_path


def test_siblings_count_once(eight_threads: Path) -> None:
    assert host.default_threads() == 4


def test_affinity_is_respected(eight_threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 5}, raising=False)
    assert host.default_threads() == 2


def test_an_unknown_topology_counts_cpus(
    eight_threads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_CPUS", eight_threads / "absent")
    assert host.default_threads() == 8


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
    ids=str,
)
def test_a_container_gets_its_share(
    eight_threads: Path, files: dict[str, str], threads: int
) -> None:
    for name, text in files.items():
        path = eight_threads / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert host.default_threads() == threads
