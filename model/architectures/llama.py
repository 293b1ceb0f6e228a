"""Llama: grouped-query attention and a gated MLP, each behind its own RMS norm."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    # Carried by SmolLM2 and Falcon3, at the only values that transformers computes.
    reader.require("rope_interleaved", False)
    reader.require("activation", "swiglu")
    reader.ignore("max_sequence_length")
    sizes = read_sizes(reader, max_context=2048)
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
    )
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    layers = (LayerSpec(mixer, feed_forward),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("llama", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
