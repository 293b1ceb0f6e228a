"""Opening: whatever was done to a package after it was written, it is seen and named."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewright.artifacts import Package
from edgewright.artifacts.errors import PackageError

GRAPH = "variants/cpu/model.onnx"
LIBRARY = "lib/linux-x86_64/libedgewright.so"
Spoil = Callable[[Path], object]


def _link_file(root: Path) -> None:
    (root / GRAPH).rename(root / "elsewhere")
    (root / GRAPH).symlink_to(root / "elsewhere")


def _link_out(root: Path) -> None:
    shutil.move(root / GRAPH, root.parent / "outside")
    (root / GRAPH).symlink_to("../../../outside")


def _link_folder(root: Path) -> None:
    shutil.move(root / "variants", root.parent / "outside")
    (root / "variants").symlink_to("../outside")


def _link_manifest(root: Path) -> None:
    shutil.move(root / "manifest.json", root.parent / "outside.json")
    (root / "manifest.json").symlink_to("../outside.json")


def _pipe(root: Path) -> None:
    (root / GRAPH).unlink()
    os.mkfifo(root / GRAPH)


def _folder(root: Path) -> None:
    (root / GRAPH).unlink()
    (root / GRAPH).mkdir()


def _truncate_manifest(root: Path) -> None:
    os.truncate(root / "manifest.json", 500)


def _escape(root: Path) -> None:
    """The blob's path, in the manifest, leads out of the package."""
    (root.parent / "secret").write_bytes(b"graph bytes")
    path = root / "manifest.json"
    path.write_text(path.read_text().replace(GRAPH, "../secret"))


SPOILT: list[tuple[Spoil, str]] = [
    (shutil.rmtree, "is not a package: there is no such directory"),
    (lambda root: (root / "manifest.json").unlink(), "is not a package: it has no manifest.json"),
    (_truncate_manifest, "manifest.json: not valid JSON .* copy or export the package again"),
    (_link_manifest, "manifest.json is a link; manifest.json must be a plain file"),
    (lambda root: os.truncate(root / "manifest.json", 1 << 40), "at most 33554432 are allowed"),
    (lambda root: (root / GRAPH).unlink(), f"{GRAPH} is missing; copy or export"),
    (lambda root: shutil.rmtree(root / "lib"), f"{LIBRARY} is missing; copy or export"),
    (lambda root: os.truncate(root / GRAPH, 10), f"{GRAPH} has 10 bytes, 11 are required"),
    (lambda root: os.truncate(root / GRAPH, 1 << 40), f"{GRAPH} has {1 << 40} bytes, 11"),
    (_link_file, f"{GRAPH} is a link; {GRAPH} must be a plain file in plain folders"),
    (_link_out, f"{GRAPH} is a link"),
    (_link_folder, f"variants is a link; {GRAPH} must be"),
    (_pipe, f"{GRAPH} is no plain file"),
    (_folder, f"{GRAPH} is a folder"),
    (_escape, "not a plain path inside the package"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_spoilt_package_is_refused_in_one_line(
    package: Package, spoil: Spoil, message: str
) -> None:
    spoil(package.root)
    with pytest.raises(PackageError, match=message) as caught:
        Package.open(package.root)
    assert "\n" not in str(caught.value)


def test_what_is_no_package_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="file is not a package: it is a file"):
        Package.open(tmp_path / "file")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PackageError, match="looks like a checkpoint: run edgewright export"):
        Package.open(tmp_path)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_anywhere_is_found_and_named(package: Package) -> None:
    for path in package.entries:
        location = package.root / path
        for at in {0, location.stat().st_size // 2, location.stat().st_size - 1}:
            _flip(location, at)
            opened = Package.open(package.root)  # sizes are right: only the hash can tell
            for look in (opened.read_verified, opened.verified_path):
                with pytest.raises(PackageError, match=f"{path} is not what manifest.json says"):
                    look(path)
            with pytest.raises(PackageError, match=f"{path} is not what manifest.json says"):
                Package.open(package.root, verify=True)
            _flip(location, at)
    Package.open(package.root, verify=True)


def test_swapped_blobs_are_found(package: Package) -> None:
    first, second = (package.root / path for path in package.manifest.variants[0].weights)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(PackageError, match=r"sha256-\w+ has \d+ bytes, \d+ are required"):
        Package.open(package.root)


def test_file_that_changed_after_opening_is_refused(package: Package) -> None:
    (package.root / GRAPH).write_bytes(b"other bytes")
    with pytest.raises(PackageError, match=f"{GRAPH} is not what"):
        package.read_verified(GRAPH)
    (package.root / GRAPH).unlink()
    (package.root / GRAPH).symlink_to("/etc/passwd")
    for look in (package.path, package.read_verified, package.verified_path):
        with pytest.raises(PackageError, match="is a link"):
            look(GRAPH)


def test_only_listed_files_are_given_out(package: Package) -> None:
    (package.root / "extra").write_text("left by someone")
    for path in ("extra", "manifest.json", "../package/manifest.json", "/etc/passwd", ""):
        for look in (package.path, package.read_verified, package.verified_path):
            with pytest.raises(PackageError, match=r"is not listed in manifest\.json"):
                look(path)


def test_a_listed_file_is_read_and_located(package: Package) -> None:
    assert package.read_verified(GRAPH) == b"graph bytes"
    assert package.verified_path(GRAPH) == package.path(GRAPH) == package.root / GRAPH
    with pytest.raises(PackageError, match="has 11 bytes; at most 10 are allowed"):
        package.read_verified(GRAPH, limit_bytes=10)


def test_verify_reports_every_byte(package: Package) -> None:
    seen: list[int] = []
    package.verify(seen.append)
    assert sum(seen) == package.size_bytes


def test_package_opens_through_a_link_and_a_relative_path(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(package.root.parent)
    os.symlink("package", "current")
    opened = Package.open("current", verify=True)
    assert opened.manifest == package.manifest
    monkeypatch.chdir("/")
    assert opened.read_verified(GRAPH) == b"graph bytes"
    assert opened.add_evidence("cpu", b"{}").read_evidence("cpu") == b"{}"


def test_evidence_is_kept_with_its_hash(package: Package) -> None:
    package = package.add_evidence("cpu", b'{"top_1": 1.0}')
    assert Package.open(package.root, verify=True) == package
    assert package.read_evidence("cpu") == b'{"top_1": 1.0}'
    _flip(package.root / package.manifest.evidence["cpu"].path, 3)
    with pytest.raises(PackageError, match=r"evidence/cpu-\w+.json is not what"):
        package.read_evidence("cpu")
    with pytest.raises(PackageError, match="no evidence 'gpu'; it has cpu"):
        package.read_evidence("gpu")
    package.add_evidence("cpu", b'{"top_1": 1.0}')  # the same again mends it
    Package.open(package.root, verify=True)


def test_new_evidence_takes_the_place_of_the_old(package: Package) -> None:
    before = {path for path in package.root.rglob("*") if path.is_file()}
    package.add_evidence("cpu", b"1")
    package.add_evidence("other", b"2")  # the stale Package does not undo what came in between
    package = package.add_evidence("cpu", b"3")
    package = package.add_evidence("cpu", b"3")
    assert package.read_evidence("cpu") == b"3"
    assert package.read_evidence("other") == b"2"
    after = {path for path in package.root.rglob("*") if path.is_file()}
    assert len(after - before) == 2


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b", ".hidden", "x" * 200])
def test_evidence_needs_a_plain_name(package: Package, name: str) -> None:
    with pytest.raises(PackageError):
        package.add_evidence(name, b"{}")
    assert Package.open(package.root) == package
    assert not (package.root / "evidence").exists()


def test_evidence_is_not_written_through_a_link(package: Package, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (package.root / "evidence").symlink_to(tmp_path / "outside")
    with pytest.raises(PackageError, match="evidence is no plain folder; remove it"):
        package.add_evidence("cpu", b"{}")
    assert list((tmp_path / "outside").iterdir()) == []


def test_failing_to_store_evidence_leaves_the_package_whole(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package.add_evidence("cpu", b"old")
    real, calls = os.replace, 0

    def fail_at_the_manifest(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_manifest)
    with pytest.raises(PackageError, match=r"cannot store evidence 'cpu': No space left"):
        package.add_evidence("cpu", b"new")
    assert Package.open(package.root, verify=True).read_evidence("cpu") == b"old"
    assert len(list((package.root / "evidence").iterdir())) == 1


def _add(root: Path, name: str) -> None:
    for number in range(5):
        Package.open(root).add_evidence(f"{name}{number}", json.dumps([name, number]).encode())


def test_concurrent_evidence_is_all_kept(package: Package) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(package.root, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(Package.open(package.root, verify=True).manifest.evidence) == 20
