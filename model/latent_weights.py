"""The weights of latent attention, under the names that DeepSeek gave them."""

from __future__ import annotations

from edgewright.model.config import MixerSpec
from edgewright.model.mixers.latent_attention import LatentAttentionSpec
from edgewright.model.weights import TensorSource, Weights, take_linear, take_norm


def take_latent_attention(source: TensorSource, ours: str, layer: str, spec: MixerSpec) -> Weights:
    assert isinstance(spec, LatentAttentionSpec)
    theirs = f"{layer}.{source.names.mixer}"
    query = "q_proj" if spec.query_rank is None else "q_b_proj"
    weights = take_linear(source, f"{ours}.query", f"{theirs}.{query}", spec.query_bias)
    if spec.query_rank is not None:
        down = f"{theirs}.q_a_proj"
        weights |= take_linear(source, f"{ours}.query_down", down, spec.query_down_bias)
    both = f"{theirs}.kv_a_proj_with_mqa"
    weights |= take_linear(source, f"{ours}.latent", both, spec.latent_bias)
    weights |= take_linear(source, f"{ours}.output", f"{theirs}.o_proj", spec.output_bias)
    weights[f"{ours}.up"] = source.take(f"{theirs}.kv_b_proj.weight")
    for norm, published in (("query_norm", "q_a"), ("latent_norm", "kv_a")):
        if getattr(spec, norm) is not None:
            name = f"{theirs}.{published}_layernorm.weight"
            weights[f"{ours}.{norm}.weight"] = take_norm(source, name)
    return weights
