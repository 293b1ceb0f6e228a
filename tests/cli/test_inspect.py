"""`edgewright inspect`: packages and checkpoints under the same keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgewright.export import export_checkpoint
from edgewright.model.config import CacheDtype
from edgewright.model.loading import open_model
from tests import model_zoo as zoo

Edgewright = Callable[..., Result]
KEYS = {
    "kind", "name", "architecture", "parameters", "bits_per_weight", "weight_dtypes", "layers",
    "hidden_size", "vocab_size", "max_context", "size_bytes", "state_bytes_per_token",
    "state_bytes_fixed", "variants",
}  # fmt: skip


@pytest.fixture(scope="module")
def latent_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latent")


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


LATENT = [
    "deepseek-v2-lite",
    "deepseek-v3-halves",
    "glm4-moe-lite-grouped",
    "minicpm3-unscaled",
    "youtu-halves",
]
CACHES: list[tuple[CacheDtype, int]] = [("float32", 4), ("float16", 2), ("int8", 1)]


def _latent_values(name: str) -> int:
    """What one token leaves behind: in each layer a latent and a rotated key."""
    config = zoo.ENTRIES[name].config
    layers, rank, rope = (
        int(str(config[key])) for key in ("num_hidden_layers", "kv_lora_rank", "qk_rope_head_dim")
    )
    return layers * (rank + rope)


@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_keeps_a_latent_and_a_rotated_key_of_each_token(
    edgewright: Edgewright, name: str, latent_models: Path
) -> None:
    checkpoint = zoo.write_checkpoint(name, latent_models)
    told = json.loads(edgewright("inspect", checkpoint, "--json").stdout)
    assert told["architecture"] == zoo.ENTRIES[name].model_type
    assert told["state_bytes_per_token"] == _latent_values(name) * 4
    assert told["state_bytes_fixed"] == 0
    for cache, size in CACHES:
        layout = open_model(checkpoint, cache_dtype=cache).decoder.layout
        assert layout.bytes_per_token == _latent_values(name) * size


@pytest.mark.parametrize(("cache", "size"), CACHES)
def test_a_package_of_latent_attention_says_what_its_cache_costs(
    edgewright: Edgewright, cache: CacheDtype, size: int, latent_models: Path, tmp_path: Path
) -> None:
    checkpoint = zoo.write_checkpoint("youtu-halves", latent_models)
    export_checkpoint(checkpoint, tmp_path / "package", targets=(), cache_dtype=cache)
    told = json.loads(edgewright("inspect", tmp_path / "package", "--json").stdout)
    assert told["state_bytes_per_token"] == _latent_values("youtu-halves") * size
