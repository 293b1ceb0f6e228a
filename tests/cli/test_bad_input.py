"""Bad input of every kind: one line on stderr, a status that is not 0, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
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
def spoilt(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder in which the package is to appear."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def read_shard(folder: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_shard(folder: Path, header: dict[str, dict[str, object]], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    content = struct.pack("<Q", len(encoded)) + encoded + data
    (folder / "model.safetensors").write_bytes(content)


def truncate(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def lose_a_shard(folder: Path) -> None:
    header, _ = read_shard(folder)
    names = [name for name in header if name != "__metadata__"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def misshape(folder: Path) -> None:
    header, data = read_shard(folder)
    entry = header["model.layers.0.self_attn.q_proj.weight"]
    entry["shape"] = [24, 96]
    write_shard(folder, header, data)


def drop_a_tensor(folder: Path) -> None:
    header, data = read_shard(folder)
    header["model.renamed.weight"] = header.pop("model.norm.weight")
    write_shard(folder, header, data)


def configure(**changes: object) -> Spoil:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "model.safetensors"),
        (lose_a_shard, "model-00001-of-00002.safetensors"),
        (misshape, "q_proj"),
        (drop_a_tensor, "model.norm.weight"),
        (configure(model_type="perceptron"), "perceptron"),
        (configure(attention_wobble=2), "attention_wobble"),
        (configure(num_key_value_heads=3), "num_key_value_heads"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (shutil.rmtree, "checkpoint"),
    ],
)
def test_a_bad_checkpoint(
    edgewright: Edgewright, spoilt: Path, place: Path, spoil: Spoil, words: str
) -> None:
    spoil(spoilt)
    ended = edgewright("export", spoilt, "-o", place / "package", "--target", "none")
    assert_one_line(ended, words)
    assert list(place.iterdir()) == []


def assert_one_line(ended: Result, words: str) -> None:
    assert (ended.exit_code, ended.stdout) == (1, ""), ended.output
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
    assert "a mistake in edgewright itself" not in ended.stderr


def test_nan_weights_export_with_a_warning(
    edgewright: Edgewright, spoilt: Path, place: Path
) -> None:
    header, data = read_shard(spoilt)
    name = "model.layers.1.mlp.up_proj.weight"
    start = header[name]["data_offsets"][0]  # type: ignore[index]
    nan = struct.pack("<f", float("nan"))
    write_shard(spoilt, header, data[:start] + nan + data[start + 4 :])
    ended = edgewright("export", spoilt, "-o", place / "package", "--target", "none")
    assert ended.exit_code == 0
    (line,) = ended.stderr.splitlines()
    assert line.startswith("warning: ")
    assert name in line


def test_the_output_exists(edgewright: Edgewright, checkpoint: Path, place: Path) -> None:
    (place / "package").mkdir()
    (place / "package" / "mine").write_text("keep")
    ended = edgewright("export", checkpoint, "-o", place / "package")
    assert_one_line(ended, "package")
    assert [file.name for file in place.rglob("*")] == ["package", "mine"]


def test_no_folder_to_write_in(edgewright: Edgewright, checkpoint: Path, place: Path) -> None:
    (place / "file").write_text("not a folder")
    assert_one_line(edgewright("export", checkpoint, "-o", place / "file" / "package"), "file")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--provider", "toaster"), ("--target", "beos-m68k"), ("--bits", "3.1")],
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


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if os.name == "nt" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk; the test above is its stand-in")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_the_disk_is_full(checkpoint: Path, small_disk: Path) -> None:
    ended = export_apart(checkpoint, small_disk / "package")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "No space left" in ended.stderr
    assert list(small_disk.iterdir()) == []


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
