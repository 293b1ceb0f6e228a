"""The keys that models with gated delta layers share become their mixers' settings."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import MixerSpec, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import Sizes

_FULL, _LINEAR = "full_attention", "linear_attention"
_MOST_HEADS = 1 << 14
_LONGEST = 1 << 10


def read_linear_layers(reader: ConfigReader, default: list[bool]) -> list[bool]:
    """Which layers are gated delta layers; `default` says so without `layer_types`."""
    names = [_LINEAR if linear else _FULL for linear in default]
    types = reader.strings("layer_types", names, len(default))
    for name in types:
        if name not in (_FULL, _LINEAR):
            raise reader.wrong("layer_types", name, f"{_FULL} or {_LINEAR}")
    return [name == _LINEAR for name in types]


def read_gated_delta(
    reader: ConfigReader,
    norm_eps: float,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int | None = None,
    value_dim: int | None = None,
) -> GatedDeltaSpec:
    """The sizes given are the family's own, for what the config leaves out."""
    keys = reader.integer("linear_num_key_heads", key_heads, maximum=_MOST_HEADS)
    values = reader.integer("linear_num_value_heads", value_heads, maximum=_MOST_HEADS)
    if values % keys:
        raise reader.error(
            f"linear_num_value_heads {values} is not a multiple of linear_num_key_heads {keys}"
        )
    if key_dim is None:
        key_dim = int(0.75 * reader.integer("hidden_size") / keys)
    key_dim = reader.integer("linear_key_head_dim", key_dim, maximum=_MOST_HEADS)
    value_dim = reader.integer(
        "linear_value_head_dim", value_dim or 2 * key_dim, maximum=_MOST_HEADS
    )
    taps = reader.integer("linear_conv_kernel_dim", 4, minimum=2, maximum=_LONGEST)
    activation = reader.activation("hidden_act", "silu")
    return GatedDeltaSpec(keys, values, key_dim, value_dim, taps, norm_eps, activation)


def read_qwen_mixers(reader: ConfigReader, sizes: Sizes, norm: NormSpec) -> list[MixerSpec]:
    """Gated delta layers, and every so often gated attention with partly rotated heads."""
    # Never a window and always a gate, whatever these say.
    reader.ignore("use_sliding_window", "attn_output_gate")
    bias = reader.boolean("attention_bias", False)
    attention = replace(
        sizes.attention,
        # Sections of the rotation are for pictures: all positions of a text are alike.
        rope=read_rope(
            reader,
            sizes.head_dim,
            sizes.max_context,
            part=0.25,
            inert=("mrope_section", "mrope_interleaved"),
        ),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        qk_norm_eps=norm.eps,
        output_gate=True,
    )
    delta = read_gated_delta(
        reader, norm.eps, key_heads=16, value_heads=32, key_dim=128, value_dim=128
    )
    period = reader.integer("full_attention_interval", 4)
    default = [(index + 1) % period != 0 for index in range(sizes.layers)]
    return [delta if linear else attention for linear in read_linear_layers(reader, default)]
