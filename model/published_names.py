"""Our parameter names go in; those of a published checkpoint come out: the reverse of what
architectures/llama.py and architectures/latent_hybrid.py read."""

from __future__ import annotations

import re

from torch import nn

from edgewright.model.mixers.attention import Attention
from edgewright.model.mixers.latent_attention import LatentAttention
from edgewright.model.mixers.state_space_dual import StateSpaceDual

_NAMES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.", "model.layers."),
    (r"\.feed_forward\.(gate|up|down)\.", r".mlp.\1_proj."),
    (r"\.mixer_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
    (r"^head\.", "lm_head."),
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


def published_name(name: str, mixer: type[nn.Module]) -> str:
    """`mixer`: what the layer has, where the parameter is one of its mixer's."""
    layer, _, within = name.partition(".mixer.")
    if within:
        named = next(names for kind, names in _MIXER_NAMES.items() if issubclass(mixer, kind))
        ours = next(ours for ours in named if within == ours or within.startswith(f"{ours}."))
        name = f"{layer}.{named[ours]}{within.removeprefix(ours)}"
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
