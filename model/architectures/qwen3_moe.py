"""Qwen3-MoE: qwen3's attention; every so many layers, experts in place of the MLP."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import take_experts
from edgewright.model.moe_config import read_moe
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import read_switched_window

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    # This family's windows, where it has them, are every layer's.
    reader.ignore("max_window_layers")
    sizes = read_sizes(reader, max_context=32768)
    norm = read_rms_norm(reader)
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        qk_norm_eps=norm.eps,
        window=read_switched_window(reader) or 0,
    )
    intermediate = reader.integer("moe_intermediate_size", 768, maximum=1 << 24)
    experts = replace(
        read_moe(reader, intermediate, experts=128, top_k=8, fewest=0),
        renormalise=reader.boolean("norm_topk_prob", False),
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
        for index in range(sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen3_moe", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec)
