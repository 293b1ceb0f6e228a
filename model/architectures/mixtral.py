"""Mixtral: mistral's attention and, in place of the MLP, experts of which each token takes two."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import take_experts
from edgewright.model.moe_config import read_moe
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=131072)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context, theta=1e6),
        window=reader.integer_or_null("sliding_window", None) or 0,
    )
    experts = read_moe(reader, sizes.intermediate, experts=8, top_k=2)
    layers = (LayerSpec(mixer, experts),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("mixtral", layers, read_rms_norm(reader, 1e-5), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    # Checkpoints say block_sparse_moe, transformers' own modules mlp.
    renamed = f"{layer}.mlp.gate.weight" in source
    theirs = f"{layer}.mlp" if renamed else f"{layer}.block_sparse_moe"
    return take_experts(source, ours, theirs, spec, _PARTS)
