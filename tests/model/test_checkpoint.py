"""Checkpoint directories as transformers and download caches lay them out, and the wrong ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import INDEX_NAME, SINGLE_NAME, open_checkpoint


def write_config(path: Path, **config: object) -> None:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))


def write_shards(path: Path) -> dict[str, torch.Tensor]:
    """Two shards and their index, as small as can be."""
    write_config(path)
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half()}
    weight_map = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    for name, file_name in weight_map.items():
        save_file({name: tensors[name]}, path / file_name)
    (path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    write_config(tmp_path, hidden_size=8)
    tensors = {
        "matrix": torch.randn(7, 5).to(dtype),
        "vector": torch.randn(3).to(dtype),
        "scalar": torch.tensor(2.0, dtype=dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
        "cube": torch.randn(2, 3, 4).to(dtype),
    }
    save_file(tensors, tmp_path / SINGLE_NAME)
    opened = open_checkpoint(str(tmp_path))
    assert opened.config == {"model_type": "llama", "hidden_size": 8}
    assert opened.generation_config is None and opened.tokenizer_files == ()
    assert opened.stored_bytes == sum(t.nbytes for t in tensors.values())
    assert set(opened.tensors) == set(tensors)
    for name, expected in tensors.items():
        lazy = opened.tensors[name]
        assert lazy.name == name and lazy.shape == tuple(expected.shape)
        assert f"torch.{lazy.dtype}" == str(dtype) and lazy.nbytes == expected.nbytes
        assert torch.equal(lazy.read(), expected) and lazy.read().dtype == dtype
        joined = b"".join(bytes(piece) for piece in lazy.pieces(16))
        assert joined == expected.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert torch.equal(opened.tensors["matrix"].read_rows(2, 6), tensors["matrix"][2:6])


def test_shards_written_by_transformers(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    opened = open_checkpoint(tmp_path)
    expected = model.state_dict()
    assert set(opened.tensors) == set(expected)
    assert all(torch.equal(opened.tensors[name].read(), expected[name]) for name in expected)
    assert opened.config["model_type"] == "llama"
    assert opened.generation_config is not None


def test_files_that_are_links_out_of_the_directory(tmp_path: Path) -> None:
    """The hub's cache keeps blobs apart and links to them, whatever their names."""
    source, snapshot = tmp_path / "source", tmp_path / "snapshot"
    blobs = tmp_path / "blobs"
    for path in (source, snapshot, blobs):
        path.mkdir()
    tensors = write_shards(source)
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../blobs") / str(number))
    opened = open_checkpoint(snapshot)
    assert all(torch.equal(opened.tensors[name].read(), tensors[name]) for name in tensors)


def test_a_single_file_of_another_name(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    save_file({"lora": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"a"}


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    for name in ("tokenizer.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text("x")
    opened = open_checkpoint(tmp_path)
    assert opened.generation_config == {"eos_token_id": [1, 2]}
    assert [p.name for p in opened.tokenizer_files] == ["tokenizer.json", "chat_template.jinja"]


def test_identity_tells_checkpoints_apart(tmp_path: Path) -> None:
    write_shards(tmp_path)
    first = open_checkpoint(tmp_path).identity
    assert first.startswith("sha256:") and first == open_checkpoint(tmp_path).identity
    write_config(tmp_path, rope_theta=5.0)
    second = open_checkpoint(tmp_path).identity
    save_file({"a": torch.zeros(3, 2)}, tmp_path / "m-1.safetensors")
    third = open_checkpoint(tmp_path).identity
    assert len({first, second, third}) == 3


def test_a_shard_cut_while_it_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    opened = open_checkpoint(tmp_path)
    shard = tmp_path / "m-1.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"m-1\.safetensors: ends inside tensor a"):
        opened.tensors["a"].read()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"m-1\.safetensors: cannot be read: No such file"):
        opened.tensors["a"].read()


def test_names_that_are_absent_are_key_errors(tmp_path: Path) -> None:
    write_shards(tmp_path)
    tensors = open_checkpoint(tmp_path).tensors
    assert "c" not in tensors and tensors.get("c") is None
    with pytest.raises(KeyError):
        tensors["c"]


def index(path: Path, **weight_map: object) -> None:
    (path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def only(*names: str) -> Callable[[Path], None]:
    """Replaces all weights by empty files of these names."""

    def spoil(path: Path) -> None:
        for file in (*path.glob("*.safetensors"), path / INDEX_NAME):
            file.unlink()
        for name in names:
            (path / name).write_bytes(b"")

    return spoil


def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    """Puts something else in a file's place."""

    def spoil(path: Path) -> None:
        (path / name).unlink()
        put(path / name)

    return spoil


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "config cut": (
        lambda p: (p / "config.json").write_text('{"a": '),
        r"config\.json: not valid JSON",
    ),
    "config a list": (
        lambda p: (p / "config.json").write_text("[]"),
        "a JSON object is required, found an array",
    ),
    "config not text": (
        lambda p: (p / "config.json").write_bytes(b"\xff\xfe{}"),
        "not UTF-8 text at byte 0",
    ),
    "config twice": (
        lambda p: (p / "config.json").write_text('{"a": 1, "b": 2, "a": 3}'),
        "the key a appears twice",
    ),
    "config infinite": (lambda p: (p / "config.json").write_text('{"a": 1e999}'), "too large"),
    "config NaN": (lambda p: (p / "config.json").write_text('{"a": NaN}'), "NaN is not JSON"),
    "config below all": (
        lambda p: (p / "config.json").write_text('{"a": -Infinity}'),
        "-Infinity is not JSON",
    ),
    "generation config infinite": (
        lambda p: (p / "generation_config.json").write_text('{"a": Infinity}'),
        "Infinity is not JSON",
    ),
    "config deep": (lambda p: (p / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "config huge": (
        lambda p: os.truncate(p / "config.json", 1 << 30),
        r"config\.json: 1073741824 bytes",
    ),
    "config a directory": (
        instead("config.json", Path.mkdir),
        r"config\.json: not a regular file",
    ),
    "config a pipe": (
        instead("config.json", os.mkfifo),
        r"config\.json: not a regular file",
    ),
    "generation config cut": (
        lambda p: (p / "generation_config.json").write_text("{"),
        r"generation_config\.json: not valid JSON",
    ),
    "no weights": (only(), "no weights"),
    "pickle": (only("pytorch_model.bin"), "only pytorch_model.bin: pickles are never read"),
    "pickle shards": (only("pytorch_model-00001-of-00002.bin", "a.pt"), "pickles are never read"),
    "adapter": (only("adapter_model.safetensors"), "only an adapter"),
    "two files": (only("a.safetensors", "b.safetensors"), "2 safetensors files and neither"),
    "missing shard": (
        lambda p: (p / "m-2.safetensors").unlink(),
        r"m-2\.safetensors: missing shard, 2 are named",
    ),
    "link to nothing": (
        instead("m-2.safetensors", lambda p: p.symlink_to("x")),
        r"m-2\.safetensors: missing shard",
    ),
    "shard a pipe": (
        instead("m-2.safetensors", os.mkfifo),
        r"m-2\.safetensors: not a regular file",
    ),
    "shard outside": (
        lambda p: index(p, a="m-1.safetensors", b="../m-2.safetensors"),
        r"shard \.\./m-2\.safetensors must be the plain name",
    ),
    "shard absolute": (lambda p: index(p, a="/etc/passwd"), "shard /etc/passwd must be the plain"),
    "shard elsewhere on windows": (lambda p: index(p, a="..\\m.safetensors"), "safetensors file"),
    "shard a number": (lambda p: index(p, a=1), "shard 1 must be the plain name"),
    "shard empty": (lambda p: index(p, a=""), "must be a .safetensors file"),
    "shard of two lines": (lambda p: index(p, a="m\n.safetensors"), "must be the plain name"),
    "shard of a long name": (
        lambda p: index(p, a="m" * 300 + ".safetensors"),
        "cannot be read: File name too long",
    ),
    "shard pickled": (lambda p: index(p, a="m.bin"), r"shard m\.bin must be a \.safetensors"),
    "index empty": (index, "weight_map must map"),
    "index without map": (lambda p: (p / INDEX_NAME).write_text("{}"), "weight_map must map"),
    "listed, not there": (
        lambda p: index(p, a="m-1.safetensors", b="m-2.safetensors", c="m-2.safetensors"),
        "tensor c is missing",
    ),
    "there, not listed": (lambda p: index(p, a="m-1.safetensors", b="m-1.safetensors"), "tensor b"),
    "in two shards": (
        lambda p: save_file({"a": torch.ones(1), "b": torch.ones(1)}, p / "m-2.safetensors"),
        r"m-2\.safetensors: tensor a is here",
    ),
}


@pytest.mark.parametrize("case", SPOILED, ids=str)
def test_spoiled_directories(tmp_path: Path, case: str) -> None:
    write_shards(tmp_path)
    spoil, message = SPOILED[case]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such directory"),
        ("m.gguf", "GGUF files are not read"),
        ("m.bin", "pickles are never read"),
        ("m.safetensors", "not a directory"),
    ],
)
def test_paths_that_are_no_directory(tmp_path: Path, name: str, message: str) -> None:
    if name != "absent":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


def test_a_directory_of_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="GGUF"):
        open_checkpoint(tmp_path)
