"""Qwen2: llama with biased queries, keys and values; windows, if asked for, in the later layers."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import read_late_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.require("use_mrope", False)
    sizes = read_sizes(reader, max_context=32768)
    rope = read_rope(reader, sizes.head_dim, sizes.max_context)
    mixer = replace(sizes.attention, rope=rope, qkv_bias=True)
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(
        LayerSpec(replace(mixer, window=window), feed_forward)
        for window in read_late_windows(reader, sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen2", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
