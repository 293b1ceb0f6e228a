"""Checkpoints that are stored in integers: their packages hold those integers, and say the same."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PretrainedConfig

from edgewright.artifacts import Package
from edgewright.custom_ops.packed_weights import unpack
from edgewright.export import export_checkpoint
from edgewright.export.validate import validate
from edgewright.runtime import Session
from tests.integer_storage import Matrix, awq, gptq
from tests.random_model import save_random_model

SIZES = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
IDS = np.random.default_rng(1).integers(0, SIZES["vocab_size"], 40).tolist()
PACKED = re.compile(r"(.*(?:_proj|\.w[123]))\.weight")


def codes_of(weight: torch.Tensor, size: int) -> Matrix:
    """Every group from its least to its largest value, in 16 steps."""
    matrix = Matrix(*weight.shape, size)
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    matrix.scales = ((high - low) / 15).half()
    step = matrix.scales.float()
    matrix.zeros = (-low / step).round().long().clamp(1, 15)
    codes = (groups / step[..., None]).round() + matrix.zeros[..., None]
    matrix.codes = codes.clamp(0, 15).long().flatten(1)
    return matrix


def out_of_order(matrix: Matrix, stem: str) -> dict[str, torch.Tensor]:
    """As GPTQ leaves columns that it took by their weight: the groups are spread, and alike in the
    matrices of one input."""
    return shuffled(matrix, stem, stem.rpartition(".")[0])


def out_of_any_order(matrix: Matrix, stem: str) -> dict[str, torch.Tensor]:
    """Each matrix by itself; the queries and an expert not at all."""
    in_order = "q_proj" in stem or "experts.1." in stem
    return gptq(matrix, stem=stem) if in_order else shuffled(matrix, stem, stem)


def shuffled(matrix: Matrix, stem: str, seed: str) -> dict[str, torch.Tensor]:
    width, draw = matrix.codes.shape[1], torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    shuffle = torch.randperm(width, generator=draw)
    matrix.codes, matrix.group_of = matrix.codes[:, shuffle], matrix.group_of[shuffle]
    return gptq(matrix, stem=stem)


WRITERS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "gptq": gptq,
    "awq": awq,
    "gptq out of order": out_of_order,
    "gptq out of any order": out_of_any_order,
}


def integer_checkpoint(name: str, method: str, folder: Path) -> tuple[Path, Path]:
    """Stored in integers, and the same values as floats."""
    plain, stored = folder / "plain", folder / "stored"
    save_random_model(CONFIGS[name], plain, seed=name)
    tensors = load_file(plain / "model.safetensors")
    made: dict[str, torch.Tensor] = {}
    for key, weight in list(tensors.items()):
        if (found := PACKED.fullmatch(key)) is None:
            made[key] = weight
            continue
        matrix = codes_of(weight, 64)
        made |= WRITERS[method](matrix, stem=found[1])
        tensors[key] = matrix.values
    stored.mkdir()
    save_file(
        {key: tensor.contiguous() for key, tensor in made.items()}, stored / "model.safetensors"
    )
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method.split()[0], "bits": 4, "group_size": 64}
    (stored / "config.json").write_text(json.dumps(config))
    return stored, plain


@pytest.mark.parametrize("method", list(WRITERS))
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_codes_arrive_and_say_the_same(name: str, method: str, tmp_path: Path) -> None:
    stored, plain = integer_checkpoint(name, method, tmp_path)
    package = export_checkpoint(stored, tmp_path / "package")
    assert package.manifest.variants[0].weight_dtypes == ("int4", "float32")
    values = load_file(plain / "model.safetensors")
    down = "block_sparse_moe.experts.0.w2" if name == "mixtral" else "mlp.down_proj"
    expected = {
        values[f"model.layers.0.{end}.weight"].numpy().tobytes()
        for end in ("self_attn.o_proj", down)
    }
    assert expected <= matrices(package)
    logits = reference_logits(plain)
    found = torch.from_numpy(Session.open(package.root).logits(IDS))
    # What is left is that activations are rounded to int8.
    assert (found - logits).abs().mean() < 0.05 * logits.std()
    report = validate(package.root, stored, prompt_tokens=(19,), greedy_tokens=4)
    assert report.passed, report.render()


def reference_logits(checkpoint: Path) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([IDS])).logits[0]
    return logits


def matrices(package: Package) -> set[bytes]:
    """Of every packed weight, each matrix's values."""
    found = set()
    for path in package.manifest.variants[0].weights:
        blob = np.fromfile(package.root / path, np.uint8)
        if blob[:4].tobytes() == b"EWPM":
            found |= {matrix.dequantised().tobytes() for matrix in unpack(blob)}
    return found


@pytest.mark.parametrize(
    ("name", "method"), [("llama", "gptq out of order"), ("mixtral", "gptq out of any order")]
)
def test_onnx_runtimes_own_ops_say_the_same(name: str, method: str, tmp_path: Path) -> None:
    stored, plain = integer_checkpoint(name, method, tmp_path)
    package = export_checkpoint(stored, tmp_path / "package", ("cpu-portable",))
    logits = reference_logits(plain)
    error = (torch.from_numpy(Session.open(package.root).logits(IDS)) - logits).abs()
    # MatMulNBits rounds no activations; experts do, as ever.
    assert error.mean() < (1e-5 if name == "llama" else 0.05) * logits.std()
    report = validate(package.root, stored, prompt_tokens=(19,), greedy_tokens=4)
    assert report.passed, report.render()


def test_other_bits_quantise_anew(tmp_path: Path) -> None:
    stored, _ = integer_checkpoint("llama", "gptq", tmp_path)
    package = export_checkpoint(stored, tmp_path / "package", bits=6.5, targets=())
    assert 6.0 < package.manifest.model.bits_per_weight <= 6.5


@pytest.mark.parametrize(
    ("method", "products"),
    [
        ("gptq", {"BlockMatMul": 3, "GatedMatMul": 1}),
        ("gptq out of order", {"BlockMatMul": 3, "GatedMatMul": 1}),
        ("gptq out of any order", {"BlockMatMul": 7}),
    ],
)
def test_matrices_of_one_order_are_one_weight(
    method: str, products: dict[str, int], tmp_path: Path
) -> None:
    """Queries, keys and values; a gate and an up."""
    stored, _ = integer_checkpoint("llama", method, tmp_path)
    package = export_checkpoint(stored, tmp_path / "package", targets=())
    graph = onnx.load(package.root / "variants/cpu/model.onnx", load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.name.endswith(".packed")}
    found = Counter(node.op_type for node in graph.node if weights & {*node.input})
    layers = SIZES["num_hidden_layers"]
    assert found == {name: layers * count for name, count in products.items()}
