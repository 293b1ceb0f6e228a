"""Granite: llama with a multiplier each on embeddings, scores, residuals and logits."""

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
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        scale=reader.number("attention_multiplier", 1.0),
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
    )
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    residual = reader.number("residual_multiplier", 1.0)
    layers = (LayerSpec(mixer, feed_forward, residual_scale=residual),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return replace(
        sizes.model("granite", layers, read_rms_norm(reader), tied),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / reader.positive("logits_scaling", 1.0),
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
