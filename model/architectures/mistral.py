"""Mistral: llama without biases, every layer behind the same sliding window where there is one."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=131072)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        window=reader.integer_or_null("sliding_window", 4096) or 0,
    )
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = (LayerSpec(mixer, feed_forward),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("mistral", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
