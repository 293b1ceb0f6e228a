"""OLMo Hybrid: gated delta layers, normalised before each half, and olmo2's attention, normalised
after; published without rotation."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.delta_config import read_gated_delta, read_linear_layers
from edgewright.model.delta_weights import take_gated_delta, take_qkv
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.rope import RopeSpec
from edgewright.model.rope_config import read_rope, rope_section
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
)

INERT_TENSORS: tuple[str, ...] = (r"mtp\..*",)
NAMES = Names(
    variants={
        ".input_layernorm.": ".attention_layer_norm.",
        ".post_attention_layernorm.": ".feedforward_layer_norm.",
    }
)
_DELTA_NORM_EPS = 1e-5  # whatever rms_norm_eps says
_PROJECTIONS = {"gate": "g_proj", "beta": "b_proj", "decay": "a_proj"}


def read_config(reader: ConfigReader) -> ModelConfig:
    for bound in ("a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor"):
        reader.ignore(f"linear_{bound}")
    reader.ignore("linear_use_gate")  # always gated
    sizes = read_sizes(reader, max_context=65536, intermediate=11008)
    norm = read_rms_norm(reader)
    bias = reader.boolean("attention_bias", False)
    attention = replace(
        sizes.attention,
        rope=_read_rope(reader, sizes),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="full",
        qk_norm_eps=norm.eps,
    )
    delta = read_gated_delta(
        reader, _DELTA_NORM_EPS, key_heads=sizes.heads, value_heads=sizes.heads
    )
    if reader.boolean("linear_allow_neg_eigval", True):
        delta = replace(delta, largest_beta=2.0)
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(
        LayerSpec(delta, feed_forward) if linear else LayerSpec(attention, feed_forward, "post")
        for linear in read_linear_layers(reader, _default_linear(sizes.layers))
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("olmo_hybrid", layers, norm, tied)


def _default_linear(layers: int) -> list[bool]:
    """Every fourth layer attends, or the last where there are fewer."""
    if layers < 4:
        return [True] * (layers - 1) + [False]
    return [index % 4 != 3 for index in range(layers)]


def _read_rope(reader: ConfigReader, sizes: Sizes) -> RopeSpec | None:
    """A null for theta says that nothing is rotated; where there is no theta it has its default."""
    theta = reader.positive_or_null("rope_theta", 10000.0)
    section = rope_section(reader) or reader.stand_in({})
    if section.positive_or_null("rope_theta", theta) is None:
        return None
    return read_rope(reader, sizes.head_dim, sizes.max_context)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec)
    assert isinstance(spec, GatedDeltaSpec)
    theirs = f"{theirs}.linear_attn"
    projections = {
        part: source.take(f"{theirs}.{name}.weight") for part, name in _PROJECTIONS.items()
    }
    return take_gated_delta(
        source, ours, theirs, spec, projections | {"qkv": take_qkv(source, theirs)}
    )
