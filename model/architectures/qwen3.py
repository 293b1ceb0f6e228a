"""Qwen3: normalised queries and keys in place of qwen2's biases."""

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
    sizes = read_sizes(reader, max_context=32768, head_dim=128)
    norm = read_rms_norm(reader)
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        qk_norm_eps=norm.eps,
    )
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(
        LayerSpec(replace(mixer, window=window), feed_forward)
        for window in read_late_windows(reader, sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen3", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
