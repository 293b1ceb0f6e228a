"""A decoder in training goes in; the files of a Hugging Face llama checkpoint come out."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewright.artifacts.errors import TrainingError
from edgewright.artifacts.json_text import Json
from edgewright.model.training.recipe import Recipe
from edgewright.model.training.vocabulary import END_OF_TEXT_ID

# Our parameter names → the published ones; the reverse of what architectures/llama.py reads.
_NAMES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.", "model.layers."),
    (r"\.mixer\.(query|key|value|output)\.", lambda m: f".self_attn.{m[1][0]}_proj."),
    (r"\.feed_forward\.(gate|up|down)\.", r".mlp.\1_proj."),
    (r"\.mixer_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
)


def model_settings(recipe: Recipe, vocabulary: int) -> dict[str, Json]:
    """config.json, from which the decoder in training is built too."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "dtype": "float16",
    }


def save_settings(out: Path, settings: dict[str, Json]) -> None:
    generation = {key: settings[key] for key in ("bos_token_id", "eos_token_id")}
    for name, values in (("config.json", settings), ("generation_config.json", generation)):
        (out / name).write_text(json.dumps(values, indent=2) + "\n")


def save_weights(out: Path, decoder: nn.Module) -> None:
    tensors = {_published(name): _half(name, p) for name, p in decoder.named_parameters()}
    replace_tensors(out / "model.safetensors", tensors, {"format": "pt"})


def replace_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Whoever is killed here leaves the old file or the new one, never a part of either."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"{path} cannot be written: {error}") from None
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o644)  # the library makes it readable by its owner alone
    partial.replace(path)


def _published(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _half(name: str, parameter: Tensor) -> Tensor:
    half = parameter.detach().to(torch.float16).contiguous()
    if not half.isfinite().all():
        raise TrainingError(f"{name} does not fit float16: the training diverged, lower the rates")
    return half
