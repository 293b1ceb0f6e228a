"""What a package holds: the checkpoint's own bytes, once each, and who made it of what."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgewright.artifacts import Package
from edgewright.artifacts.errors import ExportError, PackageError
from edgewright.export import export_checkpoint
from edgewright.export.validate import validate
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.random_model import DtypeName


def _blob(package: Package, data: bytes) -> bool:
    path = f"shared_assets/sha256-{hashlib.sha256(data).hexdigest()}"
    return path in package.manifest.files


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_matrices_keep_the_checkpoints_bytes(tmp_path: Path, dtype: DtypeName) -> None:
    checkpoint = zoo.write_checkpoint("mistral", tmp_path, dtype)
    package = export_checkpoint(checkpoint, tmp_path / "package", targets=())
    tensors = load_file(checkpoint / "model.safetensors")
    assert _blob(package, _raw(tensors["model.embed_tokens.weight"]))
    assert package.manifest.model.weight_dtypes == (dtype,)
    bits = {"float32": 32, "float16": 16, "bfloat16": 16}[dtype]
    assert bits <= package.manifest.model.bits_per_weight < bits + 0.2
    ids = zoo.prompt("mistral", 17)
    found = torch.from_numpy(Session.open(package.root).logits(ids))
    assert zoo.error(found, zoo.reference_logits(checkpoint, ids)) <= zoo.TOLERANCE


def test_a_tied_table_is_stored_once(package: Package, checkpoint: Path) -> None:
    table = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    assert _blob(package, _raw(table))
    assert package.manifest.model.parameters == sum(
        tensor.numel() for tensor in load_file(checkpoint / "model.safetensors").values()
    )


def test_the_manifest_says_where_it_came_from(package: Package, checkpoint: Path) -> None:
    manifest = package.manifest
    assert manifest.provenance.checkpoint == checkpoint.name
    assert {"edgewright", "torch", "onnx"} <= set(manifest.provenance.versions)
    assert manifest.generation.eos_token_ids == (2,)
    assert manifest.tokenizer is None
    assert manifest.model.max_context == 512
    (variant,) = manifest.variants
    assert variant.states.bytes_per_token == 3 * 2 * 5 * 12 * 4
    assert str(checkpoint.parent) not in (package.root / "manifest.json").read_text()


def test_equal_inputs_give_equal_bytes(package: Package, checkpoint: Path, tmp_path: Path) -> None:
    again = export_checkpoint(checkpoint, tmp_path / "again")
    first, second = ((p.root / "manifest.json").read_bytes() for p in (package, again))
    assert first == second


def test_a_float16_cache_is_half_the_size(checkpoint: Path, tmp_path: Path) -> None:
    package = export_checkpoint(checkpoint, tmp_path / "half", cache_dtype="float16")
    assert package.manifest.variants[0].states.bytes_per_token == 3 * 2 * 5 * 12 * 2
    ids = zoo.prompt("llama-biased-tied", 40)
    found = torch.from_numpy(Session.open(package.root).logits(ids))
    assert 0 < zoo.error(found, zoo.reference_logits(checkpoint, ids)) < 1e-2


def test_an_int8_cache_is_a_quarter_of_the_size(checkpoint: Path, tmp_path: Path) -> None:
    """Random weights make attention sharp: of 300 rows of logits one moves by 0.18 of their
    deviation, where float16 moves one by 0.007; on average a logit moves by 0.02."""
    package = export_checkpoint(checkpoint, tmp_path / "int8", cache_dtype="int8")
    assert package.manifest.variants[0].states.bytes_per_token == 3 * 2 * 5 * 12
    report = validate(package.root, checkpoint, layers=True, store=False)
    assert report.passed
    long = next(check for check in report.logits if check.prompt_tokens == 300)
    assert 0.01 < long.difference.error < 0.3 and long.difference.mean_abs < 0.05
    assert long.difference.kl < 2e-3
    # PyTorch with the same rounding differs by a step where a value lies between two.
    assert max(check.error for check in report.layers) < 0.05


def test_int8_needs_rows_that_can_carry_a_scale() -> None:
    with pytest.raises(ExportError, match=r"^head_dim is 4; an int8 cache takes rows of 8 values"):
        AttentionSpec(heads=2, kv_heads=2, head_dim=4, scale=1.0).with_cache("int8")


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers.1.mlp.up_proj.weight", float("nan")), ("norm.weight", float("inf"))],
)
def test_values_that_are_not_finite_are_told(
    checkpoint: Path, tmp_path: Path, name: str, value: float
) -> None:
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[f"model.{name}"].view(-1)[3] = value
    save_file(tensors, spoiled / "model.safetensors")
    told: list[str] = []
    export_checkpoint(spoiled, tmp_path / "package", targets=(), warn=told.append)
    (about,) = [line for line in told if "finite" in line]
    assert f"model.{name}" in about and "1 " in about


def test_an_infinite_constant_of_ours_is_no_warning(checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []
    export_checkpoint(checkpoint, tmp_path / "package", targets=(), warn=told.append)
    assert not [line for line in told if "finite" in line]


def test_progress_reaches_its_end(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_checkpoint(
        checkpoint, tmp_path / "package", targets=(), progress=lambda *step: seen.append(step)
    )
    written = [step for step in seen if step[0] == "writing weights"]
    assert written[-1][1] == written[-1][2] > 0
    assert [step[1] for step in written] == sorted(step[1] for step in written)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"providers": ()}, "no provider"),
        ({"providers": ("cuda",)}, "'cuda' is not known"),
        ({"providers": ("cpu", "cpu")}, "twice"),
        ({"bits": 1.5}, "bits=1.5"),
        ({"bits": 3.1, "method": "magic"}, "'magic' is not known"),
        ({"bits": 3.1, "method": "gptq"}, "gptq needs text"),
        ({"bits": 3.1, "block": 48}, "block=48"),
        ({"targets": ("linux-riscv",)}, "linux-riscv"),
        ({"cache_dtype": "int3"}, "int3"),
    ],
)
def test_what_cannot_be_asked_for(
    checkpoint: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        export_checkpoint(checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_output_that_exists_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(PackageError, match="exists"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_generation_settings_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    from edgewright.export.generation import read_generation
    from edgewright.model.checkpoint import open_checkpoint

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((checkpoint / name).read_bytes())
    settings = {"eos_token_id": [2, 7], "top_p": 0.9, "temperature": 0.6, "do_sample": True}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    found = read_generation(open_checkpoint(copy))
    assert found.eos_token_ids == (2, 7)
    assert (found.top_p, found.temperature, found.do_sample) == (0.9, 0.6, True)
    assert found.bos_token_id == 1
