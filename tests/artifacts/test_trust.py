"""The trust list: what is recorded is trusted, and nothing else is."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from edgewright.artifacts import trust
from edgewright.artifacts.errors import EdgewrightError
from edgewright.artifacts.user_dirs import cache_dir, locate_cache

A, B = "a" * 64, "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_only_what_was_recorded_is_trusted(cache: Path) -> None:
    assert not trust.is_trusted(A)
    trust.record(A)
    trust.record(A)
    assert trust.is_trusted(A)
    assert not trust.is_trusted(B)
    assert not trust.is_trusted(A[:63])
    assert not trust.is_trusted("")
    assert (cache / trust.LIST_NAME).read_text() == A + "\n"


@pytest.mark.parametrize("wrong", ["", A[:63], A + "a", A.upper(), A + "\n", f"{B}\n{A}"])
def test_a_string_that_is_no_hash_is_never_recorded(wrong: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        trust.record(wrong)


def test_malformed_lines_are_ignored(cache: Path) -> None:
    trust.record(A)
    path = cache / trust.LIST_NAME
    path.write_bytes(b"# note\n\xff\xfe\n" + A.encode() + b" extra\n\n" + B.encode()[:40])
    assert not trust.is_trusted(A)
    trust.record(A)  # the torn last line does not swallow this one
    assert trust.is_trusted(A)
    assert not trust.is_trusted(B)


def test_the_list_is_the_owners_alone(cache: Path) -> None:
    trust.record(A)
    path = cache / trust.LIST_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert not trust.is_trusted(A)
    trust.record(B)  # a list that others could write to is begun again
    assert trust.is_trusted(B)
    assert not trust.is_trusted(A)


def test_a_linked_list_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text(A + "\n")
    cache.mkdir()
    (cache / trust.LIST_NAME).symlink_to(tmp_path / "foreign")
    assert not trust.is_trusted(A)


def _record_many(first: int) -> None:
    for number in range(first, first + 25):
        trust.record(f"{number:064x}")


def test_concurrent_writers_lose_nothing(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_record_many, args=(n * 20,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (cache / trust.LIST_NAME).read_text().splitlines()
    assert sorted(lines) == [f"{number:064x}" for number in range(85)]


def test_a_cache_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEWRIGHT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(EdgewrightError, match=r"^[^\n]*set EDGEWRIGHT_CACHE[^\n]*$"):
        cache_dir()
    assert not trust.is_trusted(A)


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"EDGEWRIGHT_CACHE": "/there"}, "linux", Path("/there")),
        ({"EDGEWRIGHT_CACHE": "/there", "XDG_CACHE_HOME": "/x"}, "linux", Path("/there")),
        ({"XDG_CACHE_HOME": "/x"}, "linux", Path("/x/edgewright")),
        ({"XDG_CACHE_HOME": "relative"}, "linux", Path.home() / ".cache/edgewright"),
        ({}, "linux", Path.home() / ".cache/edgewright"),
        ({}, "darwin", Path.home() / "Library/Caches/edgewright"),
        ({"LOCALAPPDATA": "/local"}, "win32", Path("/local/edgewright/Cache")),
        ({}, "win32", Path.home() / "AppData/Local/edgewright/Cache"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], platform: str, expected: Path) -> None:
    assert locate_cache(environment, platform) == expected
