"""Weights come to lie in large pages where the system has them, and are left alone elsewhere."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewright.runtime import Session, large_pages
from edgewright.runtime.large_pages import read_into_large_pages
from edgewright.runtime.process_memory import bytes_in_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MEGABYTE = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Written in small pieces, so that the system has them in small pages."""
    paths = [tmp_path / name for name in "abc"]
    for i, path in enumerate(paths):
        with path.open("wb", buffering=0) as file:
            for part in range(2048):
                file.write(bytes([i, part % 256]) * 1024)
    (tmp_path / "small").write_bytes(b"s")
    return [*paths, tmp_path / "small"]


def test_what_it_says_is_so(files: list[Path]) -> None:
    """And the files hold what was written to them, though what was in memory is dropped."""
    said = read_into_large_pages(files)
    for i, path in enumerate(files[:3]):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            found = np.frombuffer(mapping, np.uint8).reshape(2048, 1024, 2).copy()
            large = bytes_in_large_pages().get(str(path.resolve()), 0)
        assert (found[..., 0] == i).all()
        assert (found[..., 1] == np.arange(2048)[:, None] % 256).all()
        assert not said or large >= path.stat().st_size // 2


def test_it_stops_at_the_first_that_stays_small(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[Path]] = []
    plain = large_pages._read

    def counted(paths: list[Path]) -> list[Path]:
        read.append(list(paths))
        return plain(paths)

    monkeypatch.setattr(large_pages, "_read", counted)
    monkeypatch.setattr(large_pages, "bytes_in_large_pages", dict)
    monkeypatch.setattr(large_pages, "_offered", lambda: True)
    assert not read_into_large_pages(files)
    assert read == [files[:3], files[:1]]


@pytest.mark.parametrize("reason", ["never", "no such setting", "short memory", "gone"])
def test_nothing_is_read_without_need(
    reason: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = tmp_path / "setting"
    setting.write_text("always madvise [never]" if reason == "never" else "[always] madvise never")
    if reason == "no such setting":
        setting.unlink()
    if reason == "gone":
        files = [*files, tmp_path / "nowhere"]
    monkeypatch.setattr(large_pages, "_SETTING", setting)
    available = 8 * MEGABYTE if reason == "short memory" else 1 << 40
    monkeypatch.setattr(large_pages, "available_bytes", lambda: available)
    monkeypatch.setattr(large_pages, "_read", lambda paths: pytest.fail("read"))
    assert not read_into_large_pages(files)


def test_a_session_asks_for_them_unless_told_otherwise(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Path]] = []
    monkeypatch.setattr("edgewright.runtime.engine.read_into_large_pages", asked.append)
    Session.open(toy, large_pages=False)
    assert asked == []
    session = Session.open(toy)
    weights = session.package.manifest.variant(session.variant_name).weights
    assert asked == [[session.package.path(path) for path in weights]]
