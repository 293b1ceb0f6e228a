"""Qwen3-Next: gated delta layers, every fourth gated attention, and experts beside one that every
token passes."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.delta_config import read_qwen_mixers
from edgewright.model.delta_weights import take_gated_delta
from edgewright.model.expert_weights import take_experts
from edgewright.model.lazy import concat
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.moe_config import read_moe
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import (
    TensorSource,
    Weights,
    decoder_weights,
    split_groups,
    take_attention,
)

# A layer that guesses one token more.
INERT_TENSORS: tuple[str, ...] = (r"mtp\..*",)
_WIDEST = 1 << 24


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=32768, head_dim=256, intermediate=5632, kv_heads=2)
    norm = read_rms_norm(reader)
    intermediate = reader.integer("moe_intermediate_size", 512, maximum=_WIDEST)
    experts = read_moe(reader, intermediate, experts=512, top_k=10, fewest=0)
    shared = reader.integer("shared_expert_intermediate_size", 512, maximum=_WIDEST)
    experts = replace(
        experts,
        renormalise=reader.boolean("norm_topk_prob", True),
        shared=MlpSpec(shared, experts.activation),
        shared_gate=True,
    )
    dense = MlpSpec(sizes.intermediate, experts.activation)
    step = reader.integer("decoder_sparse_step", 1)
    always_dense = set(reader.integers("mlp_only_layers", []))
    layers = tuple(
        LayerSpec(
            mixer,
            experts
            if experts.experts and index not in always_dense and (index + 1) % step == 0
            else dense,
        )
        for index, mixer in enumerate(read_qwen_mixers(reader, sizes, norm))
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen3_next", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(
        source, config, norm_offset=True, mixer=_take_mixer, experts=_take_experts
    )


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec, norm_offset=True)
    assert isinstance(spec, GatedDeltaSpec)
    theirs = f"{theirs}.linear_attn"
    each = spec.value_heads // spec.key_heads
    width = each * spec.value_dim
    query, key, value, gate = split_groups(
        source.take(f"{theirs}.in_proj_qkvz.weight"),
        spec.key_heads,
        (spec.key_dim, spec.key_dim, width, width),
    )
    beta, decay = split_groups(
        source.take(f"{theirs}.in_proj_ba.weight"), spec.key_heads, (each, each)
    )
    projections = {
        "qkv": concat([query, key, value]),
        "gate": gate,
        "beta": beta,
        "decay": decay,
    }
    return take_gated_delta(source, ours, theirs, spec, projections, norm="norm", output="out_proj")


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec, shared="shared_expert")
