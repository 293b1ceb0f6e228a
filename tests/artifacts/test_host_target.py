"""This machine's kind, by the name that a package uses."""

from __future__ import annotations

import pytest

from edgewright.artifacts import host_target


@pytest.mark.parametrize(
    ("system", "machine", "target"),
    [
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-aarch64"),
        ("darwin", "arm64", "macos-aarch64"),
        ("win32", "AMD64", "windows-x86_64"),
        ("plan9", "mips", "plan9-mips"),
    ],
)
def test_targets(system: str, machine: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_target.sys, "platform", system)
    monkeypatch.setattr(host_target.platform, "machine", lambda: machine)
    assert host_target.host_target() == target
