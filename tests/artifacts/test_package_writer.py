"""Writing: the whole package or nothing, whatever happens on the way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from edgewright.artifacts import Manifest, Package, PackageWriter, siblings
from edgewright.artifacts.claims import Claim, claim
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.siblings import sweep
from tests.small_disk import mounted

Write = Callable[[Path], Package]


_fork = multiprocessing.get_context("fork")


def _without_weights(manifest: Manifest) -> Manifest:
    variants = tuple(replace(variant, weights=()) for variant in manifest.variants)
    return replace(manifest, variants=variants)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with mounted(tmp_path / "mount", "1m") as disk:
        yield disk


def test_what_is_written_is_read_again(tmp_path: Path, write_package: Write) -> None:
    written = write_package(tmp_path / "package")
    assert Package.open(tmp_path / "package", verify=True) == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]


def test_equal_packages_have_equal_bytes(tmp_path: Path, write_package: Write) -> None:
    first, second = (write_package(tmp_path / name).root for name in "ab")
    for path in first.rglob("*"):
        if path.is_file():
            assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()


def test_files_are_readable_as_the_user_asked_with_the_umask(
    tmp_path: Path, write_package: Write
) -> None:
    old = os.umask(0o027)
    try:
        root = write_package(tmp_path / "package").root
    finally:
        os.umask(old)
    assert stat.S_IMODE(root.stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "manifest.json").stat().st_mode) == 0o640


def test_missing_parents_are_made(tmp_path: Path, write_package: Write) -> None:
    write_package(tmp_path / "not" / "yet" / "package")
    with pytest.raises(KeyError), PackageWriter(tmp_path / "never" / "made" / "package"):
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["not"]


def test_equal_blobs_are_stored_once(tmp_path: Path, manifest: Manifest) -> None:
    data = bytes(range(256)) * 3
    with PackageWriter(tmp_path / "package") as writer:
        first = writer.add_blob([data])
        again = writer.add_blob(memoryview(data[n : n + 100]) for n in range(0, len(data), 100))
        empty = writer.add_blob([])
        other = writer.add_blob([bytearray(data), b""])
        assert first == again == other
        assert first.sha256 == hashlib.sha256(data).hexdigest()
        assert first.path == f"shared_assets/sha256-{first.sha256}"
        assert (first.size, empty.size) == (len(data), 0)
        folder = next(tmp_path.glob(".tmp-*")) / "shared_assets"
        assert sorted(entry.name for entry in folder.iterdir()) == sorted(
            blob.path.split("/")[1] for blob in (first, empty)
        )


def test_no_more_than_one_piece_is_held(tmp_path: Path) -> None:
    size = 4 << 20

    def pieces() -> Iterator[bytes]:
        for number in range(8):
            yield bytes([number]) * size

    with PackageWriter(tmp_path / "package") as writer:
        tracemalloc.start()
        try:
            writer.add_blob(pieces())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1.5 * size


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling"])
def test_existing_output_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "package"
    match kind:
        case "folder":
            out.mkdir()
        case "file":
            out.write_text("mine")
        case "link":
            out.symlink_to(tmp_path)
        case _:
            out.symlink_to("nowhere")
    with pytest.raises(PackageError, match="package exists; remove it or choose another output"):
        PackageWriter(out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path, write_package: Write) -> None:
    out = tmp_path / "package"

    finished = write_package(tmp_path / "template").manifest
    shutil.rmtree(tmp_path / "template")
    with pytest.raises(PackageError, match="package exists"), PackageWriter(out) as writer:
        for path in finished.files:
            if path.startswith("shared_assets/"):
                continue
            writer.add_bytes(path, b"")
        out.mkdir()
        (out / "mine").write_text("mine")
        writer.finish(_without_weights(finished))
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]
    assert (out / "mine").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, MemoryError])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise error

    with pytest.raises(error), PackageWriter(tmp_path / "package") as writer:
        writer.add_bytes("variants/cpu/model.onnx", b"graph")
        writer.add_blob(pieces())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_block_ends_unfinished(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.add_blob([b"x"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PackageError, match="the writer is not open"):
        writer.add_blob([b"x"])


def test_one_failed_blob_may_be_left_out(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise KeyError

    with PackageWriter(tmp_path / "package") as writer:
        with pytest.raises(KeyError):
            writer.add_blob(pieces())
        assert list((next(tmp_path.glob(".tmp-*")) / "shared_assets").iterdir()) == []


def test_manifest_that_breaks_the_rules_is_not_written(tmp_path: Path, manifest: Manifest) -> None:
    with (
        pytest.raises(PackageError, match="files does not list"),
        PackageWriter(tmp_path / "package") as writer,
    ):
        writer.finish(manifest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../up", "not a path inside a package"),
        ("/etc/passwd", "not a path inside a package"),
        ("a\\b", "not a path inside a package"),
        ("manifest.json", "reserved"),
        ("evidence/cpu.json", "reserved"),
        ("shared_assets/sha256-00", "reserved"),
        ("twice", "already written"),
    ],
)
def test_path_that_cannot_be_is_refused(tmp_path: Path, path: str, message: str) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        writer.add_bytes("twice", b"")
        with pytest.raises(PackageError, match=message):
            writer.add_bytes(path, b"")


def test_files_are_copied_through_links_and_missing_ones_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5_000_000)
    (tmp_path / "link").symlink_to(source)
    with PackageWriter(tmp_path / "package") as writer:
        writer.add_file("copy", tmp_path / "link")
        copy = next(tmp_path.glob(".tmp-*")) / "copy"
        assert copy.read_bytes() == source.read_bytes()
        assert not copy.is_symlink()
        with pytest.raises(PackageError, match=r"gone: cannot read it: No such file"):
            writer.add_file("other", tmp_path / "gone")


def test_full_disk_is_one_line_and_leaves_nothing(full_disk: Path) -> None:
    with (
        pytest.raises(PackageError, match="the disk is full") as caught,
        PackageWriter(full_disk / "package") as writer,
    ):
        writer.add_blob(b"x" * 100_000 for _ in range(20))
    assert "\n" not in str(caught.value)
    assert list(full_disk.iterdir()) == []


def test_disk_full_at_every_write(tmp_path: Path, write_package: Write) -> None:
    """Each write in turn is the one that fails, and the last run has none left to fail."""
    real = os.write
    for allowed in range(100):
        left = allowed

        def write(descriptor: int, data: memoryview) -> int:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, "No space left on device")
            left -= 1
            return real(descriptor, data[:4000])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", write)
            try:
                write_package(tmp_path / "package")
                break
            except PackageError as error:
                assert "the disk is full" in str(error)
        assert list(tmp_path.iterdir()) == []
    assert allowed > 5
    Package.open(tmp_path / "package", verify=True)


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "package", tmp_path / ("x" * 300)):
        with pytest.raises(PackageError, match=r"^[^\n]*cannot write[^\n]*$"), PackageWriter(out):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def _write_until_killed(out: Path, ready: Connection) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 1000
        # Blocked, the signal waits for us, however early it comes and whoever ignores it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        ready.send(True)
        signal.sigwait({signal.SIGINT})
        raise KeyboardInterrupt

    with PackageWriter(out) as writer:
        writer.add_blob(pieces())


def _start_writer(out: Path) -> multiprocessing.process.BaseProcess:
    here, there = _fork.Pipe()
    writer = _fork.Process(target=_write_until_killed, args=(out, there))
    writer.start()
    assert here.recv()
    return writer


def test_killed_writer_leaves_a_sibling_that_the_next_one_removes(
    tmp_path: Path, write_package: Write
) -> None:
    out = tmp_path / "package"
    writer = _start_writer(out)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-package-")
    write_package(tmp_path / "other")
    assert left.exists()  # another output's leavings are none of its business
    package = write_package(out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "package"]
    assert Package.open(out, verify=True) == package


def test_living_writer_is_left_alone(tmp_path: Path, write_package: Write) -> None:
    out = tmp_path / "package"
    writer = _start_writer(out)
    try:
        write_package(out)
        (left,) = tmp_path.glob(".tmp-*")
        assert [entry.name for entry in left.iterdir()] == ["shared_assets"]
    finally:
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()


def test_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    writer = _start_writer(tmp_path / "package")
    os.kill(writer.pid or 0, signal.SIGINT)
    writer.join()
    assert writer.exitcode != 0
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_only_its_own_leavings(tmp_path: Path) -> None:
    kept = [".tmp-package", ".tmp-package-123", ".tmp-package-0123456789ab.d", "tmp-package"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-package-000000000000").write_text("a file")
    (tmp_path / ".tmp-package-111111111111").symlink_to(tmp_path / "tmp-package")
    (tmp_path / ".tmp-package-222222222222").mkdir()
    sweep(tmp_path / "package")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [*kept, ".tmp-package-000000000000", ".tmp-package-111111111111"]
    )


def test_without_locks_packages_are_written_and_nothing_is_swept(
    tmp_path: Path, write_package: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    left = tmp_path / ".tmp-package-000000000000"
    left.mkdir()
    package = write_package(tmp_path / "package")
    assert left.exists()
    package.add_evidence("cpu", b"{}")
    Package.open(package.root, verify=True)


def test_directory_that_another_sweeps_at_once_is_made_anew(
    tmp_path: Path, write_package: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper may come between the making of a directory and its claim, before or after."""
    real, taken = claim, 0

    def late(directory: Path, wait: bool = False) -> Claim | None:
        nonlocal taken
        taken += 1
        match taken:
            case 1:
                directory.rmdir()  # raises FileNotFoundError below
            case 2:
                held = real(directory)
                directory.rmdir()
                return held
            case 3:
                directory.rmdir()
                return None
        return real(directory, wait)

    monkeypatch.setattr(siblings, "claim", late)
    write_package(tmp_path / "package")
    assert taken == 4
