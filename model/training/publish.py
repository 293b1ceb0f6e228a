"""A decoder in training goes in; the files of a Hugging Face checkpoint come out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewright.artifacts.errors import TrainingError
from edgewright.artifacts.json_text import Json
from edgewright.model.architectures.latent_hybrid import LATENT_ATTENTION, MAMBA2
from edgewright.model.decoder import Decoder
from edgewright.model.published_names import published_name
from edgewright.model.training.recipe import Recipe
from edgewright.model.training.vocabulary import END_OF_TEXT_ID


def model_settings(recipe: Recipe, vocabulary: int) -> dict[str, Json]:
    """config.json, from which the decoder in training is built too."""
    of_architecture = {"llama": _llama_settings, "latent_hybrid": _hybrid_settings}
    return {
        **of_architecture[recipe.architecture](recipe),
        "model_type": recipe.architecture,
        "vocab_size": vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "hidden_act": "silu",
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "mlp_bias": False,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "dtype": "float16",
    }


def _llama_settings(recipe: Recipe) -> dict[str, Json]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.head_dim,
        "attention_bias": False,
    }


def _hybrid_settings(recipe: Recipe) -> dict[str, Json]:
    """Mamba-2 first, latent attention after it, in turn."""
    kinds = (MAMBA2, LATENT_ATTENTION)
    half = recipe.head_dim // 2
    latent: dict[str, Json] = {
        "kv_lora_rank": recipe.rank,
        "qk_nope_head_dim": half + half % 2,
        "qk_rope_head_dim": half + half % 2,
        "v_head_dim": recipe.head_dim,
    }
    return {
        "architectures": ["LatentHybridForCausalLM"],
        "mixer_types": [kinds[index % 2] for index in range(recipe.layers)],
        **(latent if recipe.layers > 1 else {}),
        "mamba_n_heads": 2 * recipe.heads,
        "mamba_d_head": recipe.head_dim,
        "mamba_d_state": recipe.state,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
    }


def save_settings(out: Path, settings: dict[str, Json]) -> None:
    generation = {key: settings[key] for key in ("bos_token_id", "eos_token_id")}
    for name, values in (("config.json", settings), ("generation_config.json", generation)):
        (out / name).write_text(json.dumps(values, indent=2) + "\n")


def save_weights(out: Path, decoder: Decoder) -> None:
    tensors = {
        published_name(name, _mixer_kind(name, decoder)): _half(name, parameter)
        for name, parameter in decoder.named_parameters()
    }
    replace_tensors(out / "model.safetensors", tensors, {"format": "pt"})


def _mixer_kind(name: str, decoder: Decoder) -> type[nn.Module]:
    layer, _, within = name.partition(".mixer.")
    return type(decoder.get_submodule(f"{layer}.mixer")) if within else nn.Module


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


def _half(name: str, parameter: Tensor) -> Tensor:
    half = parameter.detach().to(torch.float16).contiguous()
    if name.endswith("conv.weight"):
        half = half.T[:, None].contiguous()  # [width, channels] → [channels, 1, width]
    if not half.isfinite().all():
        raise TrainingError(f"{name} does not fit float16: the training diverged, lower the rates")
    return half
