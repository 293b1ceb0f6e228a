"""Spoiled packages and places that cannot be written: one line, whichever command meets them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Edgewright = Callable[..., Result]
Spoil = Callable[[Path], object]

# The command line in a process of its own, with something done to it first.
PROGRAM = """
import os, resource, signal, sys
import edgewright.export.exporter as exporter
from edgewright.cli import main
{before}
main(["export", sys.argv[1], "-o", sys.argv[2], "--target", "none"])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder in which the package is to appear."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def assert_one_line(ended: Result, words: str) -> None:
    assert (ended.exit_code, ended.stdout) == (1, ""), ended.output
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
    assert "a mistake in edgewright itself" not in ended.stderr


def test_no_folder_to_write_in(edgewright: Edgewright, checkpoint: Path, place: Path) -> None:
    (place / "file").write_text("not a folder")
    assert_one_line(edgewright("export", checkpoint, "-o", place / "file" / "package"), "file")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--provider", "toaster"), ("--target", "beos-m68k"), ("--bits", "0.5")],
)
def test_what_cannot_be_exported(
    edgewright: Edgewright, checkpoint: Path, place: Path, option: str, value: str
) -> None:
    ended = edgewright("export", checkpoint, "-o", place / "package", option, value)
    assert_one_line(ended, value)
    assert list(place.iterdir()) == []


def export_apart(checkpoint: Path, out: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", PROGRAM.format(before=before), str(checkpoint), str(out)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def kill_while_tracing(name: str) -> str:
    return f"exporter.trace = lambda *_: os.kill(os.getpid(), signal.{name})"


def test_stopped_in_mid_export(checkpoint: Path, place: Path) -> None:
    ended = export_apart(checkpoint, place / "package", kill_while_tracing("SIGTERM"))
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")
    assert list(place.iterdir()) == []


def test_killed_in_mid_export(checkpoint: Path, place: Path) -> None:
    """Nobody can clean up after SIGKILL at once: there is no package, and the next export does."""
    ended = export_apart(checkpoint, place / "package", kill_while_tracing("SIGKILL"))
    assert ended.returncode == -signal.SIGKILL
    assert not (place / "package").exists()
    assert export_apart(checkpoint, place / "package").returncode == 0
    assert [file.name for file in place.iterdir()] == ["package"]


def test_a_file_grows_too_large(checkpoint: Path, place: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    ended = export_apart(checkpoint, place / "package", limit)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert list(place.iterdir()) == []


def spoil_graph(package: Path) -> None:
    graph = next(package.glob("variants/*/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")


def escape(package: Path) -> None:
    manifest = (package / "manifest.json").read_text()
    blob = next((package / "shared_assets").iterdir()).name
    (package / "manifest.json").write_text(manifest.replace(f"shared_assets/{blob}", "../secret"))


def link_out(package: Path) -> None:
    blob = next((package / "shared_assets").iterdir())
    outside = package.with_name("outside")
    shutil.move(blob, outside)
    blob.symlink_to(outside)


def lose_a_blob(package: Path) -> None:
    next((package / "shared_assets").iterdir()).unlink()


@pytest.mark.parametrize("spoil", [spoil_graph, escape, link_out, lose_a_blob])
@pytest.mark.parametrize("command", ["run", "bench", "validate"])
def test_a_bad_package(
    edgewright: Edgewright,
    package: Path,
    checkpoint: Path,
    tmp_path: Path,
    command: str,
    spoil: Spoil,
) -> None:
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    spoil(copy)
    rest = {"run": ["--tokens", "1"], "bench": [], "validate": ["--against", str(checkpoint)]}
    ended = edgewright(command, copy, *rest[command])
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
    assert "a mistake in edgewright itself" not in ended.stderr


def test_evidence_that_cannot_be_stored_is_shown_all_the_same(
    edgewright: Edgewright, package: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    (copy / "evidence").write_text("not a folder")
    fed = ("--prompt-tokens", "3", "--greedy-tokens", "2")
    ended = edgewright("validate", copy, "--against", checkpoint, *fed)
    assert ended.exit_code == 1
    assert ended.stdout.endswith("\npassed\n")
    assert "evidence" in ended.stderr.splitlines()[-1]
    assert list(copy.glob("evidence/*")) == []
