"""A checkpoint in block-scaled FP8, as published ones are, against transformers reading it too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from edgewright.export import export_checkpoint
from edgewright.export.validate import validate
from edgewright.runtime import Session
from tests import model_zoo as zoo

BLOCK = 32


def _quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] in FP8 and the inverse scale of each block."""
    n, k = (size // BLOCK for size in weight.shape)
    blocks = weight.view(n, BLOCK, k, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return stored.view(weight.shape), scale


def test_fp8_equals_transformers_dequantised(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 203}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    config = AutoConfig.for_model("llama", **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        tensors[name], tensors[f"{name}_scale_inv"] = _quantise(tensors[name])
    scaled.mkdir()
    save_file(tensors, scaled / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((plain / "config.json").read_text())
    values["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    (scaled / "config.json").write_text(json.dumps(values))

    package = export_checkpoint(scaled, tmp_path / "package", targets=())
    ids = torch.randint(0, 203, (1, 50), generator=torch.Generator().manual_seed(1))
    unpacked = AutoConfig.from_pretrained(scaled)
    unpacked.quantization_config["dequantize"] = True
    reference = AutoModelForCausalLM.from_pretrained(
        scaled, config=unpacked, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = reference(ids).logits[0]
        unquantised = model(ids).logits[0]
    found = torch.from_numpy(Session.open(package.root).logits(ids[0].tolist()))
    assert zoo.error(unquantised, expected) > 0.01
    assert zoo.error(found, expected) <= zoo.TOLERANCE
    report = validate(package.root, scaled, prompt_tokens=(9,), greedy_tokens=8)
    assert report.passed and report.reference.startswith("transformers")
