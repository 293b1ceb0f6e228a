"""OLMo 2: norms only after each half, and over the whole of the projected queries and keys."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=2048)
    norm = read_rms_norm(reader, 1e-5)
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="full",
        qk_norm_eps=norm.eps,
    )
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = (LayerSpec(mixer, feed_forward, "post"),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("olmo2", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
