"""A config's state-space settings become the spec of a mixer."""

from __future__ import annotations

from edgewright.model.config import LayerSpec, MixerSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.selective_scan import SelectiveScanSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec

# A recurrent model has no positions to run out of.
_ENDLESS_CONTEXT = 1 << 20
_LARGEST = 1 << 24
_MOST_LAYERS = 4096
_MOST_HEADS = 1 << 14
_WIDEST_CONVOLUTION = 1 << 10
# How the weights were drawn, which implementation computes them, second names for sizes that
# transformers does not read, and precisions that are float32 here anyway.
_INERT = """
d_inner d_model fused_add_norm n_layer rescale_prenorm_residual residual_in_fp32 ssm_cfg
time_step_floor time_step_init_scheme time_step_max time_step_min time_step_scale
use_associative_scan use_mambapy
"""


def ignore_state_space_training(reader: ConfigReader) -> None:
    reader.ignore(*_INERT.split())


def read_recurrent(reader: ConfigReader, architecture: str, mixer: MixerSpec) -> ModelConfig:
    """A model of such mixers alone. Mamba's own families name their sizes alike."""
    ignore_state_space_training(reader)
    reader.ignore("rms_norm")  # it has no other
    layers = reader.integer("num_hidden_layers", maximum=_MOST_LAYERS)
    return ModelConfig(
        architecture,
        vocab_size=reader.integer("vocab_size", maximum=_LARGEST),
        hidden_size=read_hidden_size(reader),
        layers=(LayerSpec(mixer, None),) * layers,
        norm=NormSpec("rms", reader.positive("layer_norm_epsilon", 1e-5)),
        max_context=_ENDLESS_CONTEXT,
        tied_head=reader.boolean("tie_word_embeddings", architecture != "mamba2"),
    )


def read_hidden_size(reader: ConfigReader) -> int:
    return reader.integer("hidden_size", maximum=_LARGEST)


def read_selective_scan(reader: ConfigReader, hidden: int) -> SelectiveScanSpec:
    """As mamba and falcon_mamba have it."""
    expanded = hidden * reader.integer("expand", 2, maximum=_LARGEST)
    return SelectiveScanSpec(
        # Where both are given, this one is what transformers takes.
        inner=reader.integer("intermediate_size", expanded, maximum=_LARGEST),
        state=reader.integer("state_size", 16, maximum=_LARGEST),
        rank=read_rank(reader, "time_step_rank", hidden),
        conv_width=reader.integer("conv_kernel", 4, 2, _WIDEST_CONVOLUTION),
        conv_bias=reader.boolean("use_conv_bias", True),
        bias=reader.boolean("use_bias", False),
        activation=reader.activation("hidden_act", "silu"),
    )


def read_rank(reader: ConfigReader, key: str, hidden: int) -> int:
    if reader.raw(key, "auto") == "auto":
        return -(-hidden // 16)
    return reader.integer(key, maximum=_LARGEST)


def read_state_space_dual(
    reader: ConfigReader, hidden: int, norm: NormSpec, inner: int | None = None
) -> StateSpaceDualSpec:
    """As hybrids of attention and Mamba-2 have it, each group of heads normalised by itself.
    `inner`: the width of all heads, where the config has a key of its own for it."""
    reader.ignore("mamba_chunk_size")
    heads = reader.integer("mamba_n_heads", 128, maximum=_MOST_HEADS)
    expanded = hidden * reader.integer("mamba_expand", 2, maximum=_LARGEST)
    inner = inner or expanded
    if reader.raw("mamba_d_head", "auto") == "auto":
        head_dim = inner // heads
    else:
        head_dim = reader.integer("mamba_d_head", maximum=_LARGEST)
    if heads * head_dim != inner:
        raise reader.error(
            f"mamba_n_heads {heads} of {head_dim} values are {heads * head_dim}, required: {inner}"
        )
    groups = read_head_groups(reader, "mamba_n_groups", 1, heads)
    bias = reader.boolean("mamba_proj_bias", False)
    return StateSpaceDualSpec(
        heads,
        head_dim,
        state=reader.integer("mamba_d_state", 256, maximum=_LARGEST),
        groups=groups,
        conv_width=reader.integer("mamba_d_conv", 4, 2, _WIDEST_CONVOLUTION),
        conv_bias=reader.boolean("mamba_conv_bias", True),
        activation=reader.activation("hidden_act", "silu"),
        input_bias=bias,
        output_bias=bias,
        norm_eps=norm.eps,
        norm_groups=groups,
        step_limit=reader.limits("time_step_limit"),
    )


def read_head_groups(reader: ConfigReader, key: str, default: int, heads: int) -> int:
    groups = reader.integer(key, default, maximum=_MOST_HEADS)
    if heads % groups:
        raise reader.error(f"{heads} state-space heads are not a multiple of {key} {groups}")
    return groups
