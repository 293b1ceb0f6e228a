"""`edgewright inspect`: packages and checkpoints under the same keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

Edgewright = Callable[..., Result]
KEYS = {
    "kind", "name", "architecture", "parameters", "bits_per_weight", "weight_dtypes", "layers",
    "hidden_size", "vocab_size", "max_context", "size_bytes", "state_bytes_per_token",
    "state_bytes_fixed", "variants",
}  # fmt: skip


def test_a_package_and_its_checkpoint_agree(
    edgewright: Edgewright, package: Path, checkpoint: Path
) -> None:
    one = json.loads(edgewright("inspect", package, "--json").stdout)
    other = json.loads(edgewright("inspect", checkpoint, "--json").stdout)
    assert one.keys() & other.keys() >= KEYS
    for key in KEYS - {"kind", "name", "size_bytes", "variants"}:
        assert one[key] == other[key], key
    # 2 layers, keys and values, 2 heads of 12, float32
    assert one["state_bytes_per_token"] == 2 * 2 * 2 * 12 * 4
    assert [variant["name"] for variant in one["variants"]] == ["cpu"]


def test_a_page_for_a_person(edgewright: Edgewright, package: Path, checkpoint: Path) -> None:
    for path in (package, checkpoint):
        page = edgewright("inspect", path).stdout
        assert "llama" in page
        assert "384 bytes per token" in page


def test_verify_finds_a_changed_weight(
    edgewright: Edgewright, package: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    blob = next((copy / "shared_assets").iterdir())
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    assert edgewright("inspect", copy).exit_code == 0
    ended = edgewright("inspect", copy, "--verify")
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert blob.name in ended.stderr


def test_neither_one_nor_the_other(edgewright: Edgewright, tmp_path: Path) -> None:
    assert "neither a package" in edgewright("inspect", tmp_path).stderr
    assert "no such directory" in edgewright("inspect", tmp_path / "gone").stderr
