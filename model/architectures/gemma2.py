"""Gemma 2: norms before and after each half, soft caps, and a window in every other layer."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import every_nth_full, read_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.require("use_bidirectional_attention", False)
    # The activation is hidden_activation; published configs carry this older name beside it.
    reader.ignore("hidden_act")
    sizes = read_sizes(reader, max_context=8192, head_dim=256)
    window = reader.integer_or_null("sliding_window", 4096)
    reader.require("sliding_window_size", window)
    windows = read_windows(reader, sizes.layers, window, every_nth_full(sizes.layers, 2))
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        scale=reader.positive("query_pre_attn_scalar", 256) ** -0.5,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
        softcap=reader.positive_or_null("attn_logit_softcapping", 50.0) or 0.0,
    )
    activation = reader.activation("hidden_activation", "gelu_pytorch_tanh")
    feed_forward = MlpSpec(sizes.intermediate, activation)
    layers = tuple(LayerSpec(replace(mixer, window=w), feed_forward, "sandwich") for w in windows)
    tied = reader.boolean("tie_word_embeddings", True)
    return replace(
        sizes.model("gemma2", layers, read_rms_norm(reader), tied),
        embedding_scale=sizes.hidden**0.5,
        logit_softcap=reader.positive_or_null("final_logit_softcapping", 30.0) or 0.0,
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, norm_offset=True)
