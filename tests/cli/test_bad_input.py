"""Every kind of bad input: one line on stderr, a status other than 0, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.small_disk import mounted

Edgewright = Callable[..., Result]
Spoil = Callable[[Path], None]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint, to be spoiled."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **values}))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in halves.items() for name in members}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def _lose_a_shard(folder: Path) -> None:
    _shard(folder)
    (folder / "b.safetensors").unlink()


def _cut_a_shard(folder: Path) -> None:
    _shard(folder)
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


UP = "model.layers.1.mlp.up_proj.weight"

CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    "truncated": (_truncate, "model.safetensors"),
    "missing shard": (_lose_a_shard, "b.safetensors"),
    "truncated shard": (_cut_a_shard, "b.safetensors"),
    "wrong shape": (
        lambda f: _rewrite(f, lambda t: t.update({UP: torch.zeros(64, 47)})),
        f"{UP} has shape [64, 47]",
    ),
    "missing tensor": (lambda f: _rewrite(f, lambda t: t.pop(UP)), UP),
    "extra tensor": (
        lambda f: _rewrite(f, lambda t: t.update({"model.layers.1.mlp.oops": torch.zeros(2)})),
        "model.layers.1.mlp.oops",
    ),
    "unknown architecture": (lambda f: _configure(f, model_type="lama"), "lama"),
    "no architecture": (lambda f: _configure(f, model_type=None), "model_type"),
    "unknown key": (lambda f: _configure(f, attention_twist=0.5), "attention_twist"),
    "unknown activation": (lambda f: _configure(f, hidden_act="snake"), "snake"),
    "config is not JSON": (lambda f: _overwrite(f / "config.json", "{"), "config.json"),
    "settings out of range": (
        lambda f: _overwrite(f / "generation_config.json", '{"temperature": -1}'),
        "generation_config.json: 'temperature' is -1",
    ),
    "settings beyond any sense": (
        lambda f: _overwrite(f / "generation_config.json", f'{{"top_p": {10**39}}}'),
        "generation_config.json: 'top_p'",
    ),
    "an end over two lines": (
        lambda f: _overwrite(f / "generation_config.json", r'{"eos_token_id": "a\nb"}'),
        r"'eos_token_id' is 'a\nb'",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "a pickle": (_pickle, "pickle"),
    "not safetensors": (
        lambda f: _overwrite(f / "model.safetensors", "hello there, no tensors"),
        "model.safetensors",
    ),
}


def _overwrite(path: Path, text: str) -> None:
    path.write_text(text)


def _refused(ended: Result, said: str) -> None:
    assert ended.exit_code == 1
    assert ended.stdout == ""
    errors = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), ended.stderr
    assert said in errors[0]
    assert "mistake in edgewright" not in errors[0]


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_bad_checkpoint(edgewright: Edgewright, copy: Path, case: str) -> None:
    spoil, said = CHECKPOINTS[case]
    spoil(copy)
    _refused(edgewright("export", copy, "-o", copy.parent / "out"), said)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_no_checkpoint_at_all(edgewright: Edgewright, tmp_path: Path) -> None:
    _refused(edgewright("export", tmp_path / "none", "-o", tmp_path / "out"), "none")
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_export_with_a_warning(edgewright: Edgewright, copy: Path) -> None:
    _rewrite(copy, lambda tensors: tensors[UP].view(-1)[:2].fill_(float("nan")))
    ended = edgewright("export", copy, "-o", copy.parent / "out", "--target", "none")
    assert ended.exit_code == 0
    (warning,) = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert UP in warning


def _lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _spoil_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b'{"model": "\xff')


@pytest.mark.parametrize("spoil", [_lose_the_tokenizer, _spoil_the_tokenizer])
def test_without_a_tokenizer_only_text_is_refused(
    edgewright: Edgewright, copy: Path, spoil: Spoil
) -> None:
    spoil(copy)
    out = copy.parent / "out"
    assert edgewright("export", copy, "-o", out).exit_code == 0
    _refused(edgewright("run", out, "--prompt", "hello"), "tokenizer")
    assert edgewright("run", out, "--tokens", "1,2", "-n", "2").exit_code == 0


def test_output_exists(edgewright: Edgewright, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _refused(edgewright("export", checkpoint, "-o", tmp_path / "out"), "exists")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "128k") as disk:
        yield disk


def test_disk_full(edgewright: Edgewright, checkpoint: Path, small_disk: Path) -> None:
    _refused(edgewright("export", checkpoint, "-o", small_disk / "out"), "space")
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def tampered(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "package"))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "which", ["variants/cpu/model.onnx", "lib/*/*", "tokenizer/tokenizer.json"]
)
def test_a_tampered_file(edgewright: Edgewright, tampered: Path, which: str) -> None:
    (path,) = tampered.glob(which)
    _flip(path)
    _refused(edgewright("run", tampered, "--prompt", "x"), path.name)


def test_a_tampered_blob(edgewright: Edgewright, tampered: Path) -> None:
    """Weights are mapped, so only their size is checked unless asked for."""
    blob = sorted((tampered / "shared_assets").iterdir())[0]
    _flip(blob)
    _refused(edgewright("inspect", tampered, "--verify"), blob.name)
    blob.write_bytes(blob.read_bytes()[:-1])
    _refused(edgewright("run", tampered, "--prompt", "x"), blob.name)


def _edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "shared_assets/../../secret"])
def test_a_manifest_that_points_outside(edgewright: Edgewright, tampered: Path, path: str) -> None:
    secret = tampered.parent / "secret"
    secret.write_bytes(b"0" * 64)
    entry = {"sha256": hashlib.sha256(secret.read_bytes()).hexdigest(), "size": 64}
    _edit_manifest(tampered, lambda m: m["files"].update({path: entry}))
    _refused(edgewright("run", tampered, "--prompt", "x"), path)


def test_a_graph_that_points_outside(edgewright: Edgewright, tampered: Path) -> None:
    """Vouched for by a manifest that is the attacker's too."""
    path = tampered / "variants" / "cpu" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    weight = next(w for w in model.graph.initializer if w.external_data)
    location = next(entry for entry in weight.external_data if entry.key == "location")
    outside = tampered.parent / "secret"
    outside.write_bytes((tampered / location.value).read_bytes())
    location.value = "../secret"
    path.write_bytes(model.SerializeToString())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"sha256": digest, "size": path.stat().st_size}
    _edit_manifest(tampered, lambda m: m["files"].update({"variants/cpu/model.onnx": entry}))
    _refused(edgewright("run", tampered, "--prompt", "x"), "model.onnx")


def test_not_a_package(edgewright: Edgewright, tmp_path: Path) -> None:
    _refused(edgewright("run", tmp_path, "--prompt", "x"), "not a package")


def test_a_prompt_longer_than_the_context(edgewright: Edgewright, package: Path) -> None:
    ids = ",".join(["5"] * 97)
    _refused(edgewright("run", package, "--tokens", ids), "97 tokens")
    _refused(edgewright("run", package, "--tokens", "5,6,7", "--capacity", "2"), "3 tokens")


def test_tokens_outside_the_vocabulary(edgewright: Edgewright, package: Path) -> None:
    _refused(edgewright("run", package, "--tokens", "5,300"), "300")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bits", "2.2", "--method", "rtn"), "bits=2.2 cannot be met"),
        (("--bits", "nan"), "bits=nan"),
        (("--bits", "4", "--method", "magic"), "'magic' is not one of"),
        (("--bits", "4", "--method", "gptq"), "needs text"),
        (("--bits", "4", "--block", "48"), "'48' is not one of"),
        (("--bits", "4", "--outliers", "0.5"), "outliers=0.5"),
        (("--text", "notes.txt"), "go with --bits"),
        (("--bits", "12", "--text", "EMPTY"), "no text found"),
        (("--bits", "12", "--text", "BINARY"), "is not UTF-8 text"),
        (("--bits", "12", "--text", "SHORT"), "tokens to calibrate with"),
        (("--bits", "12", "--text", "MISSING"), "neither a directory, a file"),
    ],
)
def test_quantising_that_cannot_be(
    checkpoint: Path, edgewright: Edgewright, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    texts = {"EMPTY": b"", "BINARY": b"\xff\xfe\x00\x81" * 500, "SHORT": b"hi"}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    given = [str(tmp_path / part) if part.isupper() else part for part in options]
    out = tmp_path / "out"
    result = edgewright("export", checkpoint, "-o", out, "--target", "none", *given)
    assert result.exit_code != 0 and said in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not out.exists()
