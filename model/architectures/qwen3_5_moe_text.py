"""Qwen3.5-MoE's text decoder: qwen3_5_text's layers with qwen3_next's experts."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.architectures import qwen3_5_text
from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.delta_config import read_qwen_mixers
from edgewright.model.expert_weights import take_experts
from edgewright.model.moe_config import read_moe
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS = qwen3_5_text.INERT_TENSORS
_WIDEST = 1 << 24


def read_config(reader: ConfigReader) -> ModelConfig:
    qwen3_5_text.ignore_unused(reader)
    intermediate = reader.integer("moe_intermediate_size", 512, maximum=_WIDEST)
    sizes = read_sizes(
        reader, max_context=32768, head_dim=256, intermediate=intermediate, kv_heads=2
    )
    norm = read_rms_norm(reader)
    experts = read_moe(reader, intermediate, experts=256, top_k=8)
    shared = reader.integer("shared_expert_intermediate_size", 512, maximum=_WIDEST)
    experts = replace(experts, shared=MlpSpec(shared, experts.activation), shared_gate=True)
    layers = tuple(LayerSpec(mixer, experts) for mixer in read_qwen_mixers(reader, sizes, norm))
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen3_5_moe_text", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(
        source, config, norm_offset=True, mixer=qwen3_5_text.take_mixer, experts=_take_experts
    )


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec, shared="shared_expert")
