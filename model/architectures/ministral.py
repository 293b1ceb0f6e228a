"""Ministral: mistral whose layers each say whether they slide."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import read_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=131072)
    window = reader.integer_or_null("sliding_window", 4096)
    windows = read_windows(reader, sizes.layers, window, [window is not None] * sizes.layers)
    mixer = replace(sizes.attention, rope=read_rope(reader, sizes.head_dim, sizes.max_context))
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(LayerSpec(replace(mixer, window=w), feed_forward) for w in windows)
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("ministral", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
