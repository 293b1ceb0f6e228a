"""A decoder in training goes in; the files of a Hugging Face checkpoint come out."""

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
from edgewright.model.architectures.latent_hybrid import LATENT_ATTENTION, MAMBA2
from edgewright.model.decoder import Decoder
from edgewright.model.mixers.attention import Attention
from edgewright.model.mixers.latent_attention import LatentAttention
from edgewright.model.mixers.state_space_dual import StateSpaceDual
from edgewright.model.training.recipe import Recipe
from edgewright.model.training.vocabulary import END_OF_TEXT_ID

# Our parameter names → the published ones; the reverse of what architectures/llama.py and
# architectures/latent_hybrid.py read.
_NAMES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.", "model.layers."),
    (r"\.feed_forward\.(gate|up|down)\.", r".mlp.\1_proj."),
    (r"\.mixer_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
)
_MIXER_NAMES: dict[type[nn.Module], dict[str, str]] = {
    Attention: {part: f"self_attn.{part[0]}_proj" for part in ("query", "key", "value", "output")},
    LatentAttention: {
        "query": "self_attn.q_proj",
        "latent": "self_attn.kv_a_proj_with_mqa",
        "latent_norm": "self_attn.kv_a_layernorm",
        "up": "self_attn.kv_b_proj.weight",
        "output": "self_attn.o_proj",
    },
    StateSpaceDual: {
        "input": "mamba.in_proj",
        "conv": "mamba.conv1d",
        "step_bias": "mamba.dt_bias",
        "parametrizations.decay.original": "mamba.A_log",
        "skip": "mamba.D",
        "norm": "mamba.norm",
        "output": "mamba.out_proj",
    },
}


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
        _published(name, decoder): _half(name, parameter)
        for name, parameter in decoder.named_parameters()
    }
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


def _published(name: str, decoder: Decoder) -> str:
    layer, _, within = name.partition(".mixer.")
    if within:
        mixer = decoder.get_submodule(f"{layer}.mixer")
        named = next(names for kind, names in _MIXER_NAMES.items() if isinstance(mixer, kind))
        ours = next(ours for ours in named if within == ours or within.startswith(f"{ours}."))
        name = f"{layer}.{named[ours]}{within.removeprefix(ours)}"
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _half(name: str, parameter: Tensor) -> Tensor:
    half = parameter.detach().to(torch.float16).contiguous()
    if name.endswith("conv.weight"):
        half = half.T[:, None].contiguous()  # [width, channels] → [channels, 1, width]
    if not half.isfinite().all():
        raise TrainingError(f"{name} does not fit float16: the training diverged, lower the rates")
    return half
