"""Gemma 3's text decoder: gemma 2 with normalised queries and keys in place of the attention cap,
and a rotation of its own for the sliding layers."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope import RopeSpec
from edgewright.model.rope_config import read_rope_section
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import every_nth_full, read_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.require("use_bidirectional_attention", False)
    # transformers has the attention's cap in its config and leaves it out of the computation.
    # The pattern's private name is a copy that it saves beside layer_types.
    reader.ignore("attn_logit_softcapping", "_sliding_window_pattern", "hidden_act")
    sizes = read_sizes(reader, max_context=131072, head_dim=256)
    norm = read_rms_norm(reader)
    window = reader.integer_or_null("sliding_window", 4096)
    period = reader.integer("sliding_window_pattern", 6)
    windows = read_windows(reader, sizes.layers, window, every_nth_full(sizes.layers, period))
    bias = reader.boolean("attention_bias", False)
    mixer = replace(
        sizes.attention,
        scale=reader.positive("query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        qk_norm_eps=norm.eps,
    )
    activation = reader.activation("hidden_activation", "gelu_pytorch_tanh")
    feed_forward = MlpSpec(sizes.intermediate, activation)
    full, sliding = _read_ropes(reader, sizes)
    layers = tuple(
        LayerSpec(replace(mixer, window=w, rope=sliding if w else full), feed_forward, "sandwich")
        for w in windows
    )
    tied = reader.boolean("tie_word_embeddings", True)
    return replace(
        sizes.model("gemma3_text", layers, norm, tied),
        embedding_scale=sizes.hidden**0.5,
        logit_softcap=reader.positive_or_null("final_logit_softcapping", None) or 0.0,
    )


def _read_ropes(reader: ConfigReader, sizes: Sizes) -> tuple[RopeSpec, RopeSpec]:
    """Of the full and of the sliding layers. The published `rope_scaling` is the full layers'."""
    empty = reader.stand_in({})
    by_type = reader.section("rope_parameters") or empty
    scaling = reader.section("rope_scaling")
    full = by_type.section("full_attention")
    if scaling is not None and full is not None:
        raise reader.error("rope_scaling and rope_parameters both describe full_attention")
    full = full or scaling or empty
    sliding = by_type.section("sliding_attention") or empty
    by_type.finish()
    thetas = (
        reader.positive("rope_theta", 1e6),
        reader.positive("rope_local_base_freq", 1e4),
    )
    reader.require("partial_rotary_factor", 1)
    both = zip((full, sliding), thetas, strict=True)
    # transformers looks for yarn's `truncate` beside the two sections, where it never is.
    first, second = (
        read_rope_section(section, sizes.head_dim, sizes.max_context, theta, always_truncate=True)
        for section, theta in both
    )
    return first, second


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, norm_offset=True)
