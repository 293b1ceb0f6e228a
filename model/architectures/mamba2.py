"""Mamba-2: layers of state spaces by heads alone, without a feed-forward half."""

from __future__ import annotations

from edgewright.model.config import MixerSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.state_space_config import (
    read_head_groups,
    read_hidden_size,
    read_recurrent,
)
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import Names, TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    body="backbone.",
    embedding="embeddings",
    norm="norm_f",
    norms={"mixer_norm": "norm"},
    variants={".embeddings.": ".embedding."},  # as the first checkpoints called it
)


def read_config(reader: ConfigReader) -> ModelConfig:
    return read_recurrent(reader, "mamba2", _read_mixer(reader))


def _read_mixer(reader: ConfigReader) -> StateSpaceDualSpec:
    # transformers gates before it normalises whatever the config says, and reads no rank.
    reader.ignore("chunk_size", "norm_before_gate", "time_step_rank", "intermediate_size")
    hidden = read_hidden_size(reader)
    heads = reader.integer("num_heads", 128, maximum=1 << 14)
    head_dim = reader.integer("head_dim", 64, maximum=1 << 24)
    expand = reader.integer("expand", 2, maximum=1 << 24)
    if heads * head_dim != hidden * expand:
        raise reader.error(
            f"num_heads {heads} of head_dim {head_dim} are {heads * head_dim},"
            f" hidden_size and expand make {hidden * expand}"
        )
    groups = read_head_groups(reader, "n_groups", 8, heads)
    bias = reader.boolean("use_bias", False)
    return StateSpaceDualSpec(
        heads,
        head_dim,
        state=reader.integer("state_size", 128, maximum=1 << 24),
        groups=groups,
        conv_width=reader.integer("conv_kernel", 4, minimum=2, maximum=1 << 10),
        conv_bias=reader.boolean("use_conv_bias", True),
        activation=reader.activation("hidden_act", "silu"),
        input_bias=bias,
        output_bias=bias,
        norm_eps=reader.positive("layer_norm_epsilon", 1e-5),
        norm_groups=groups,
        step_limit=reader.limits("time_step_limit"),
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    assert isinstance(spec, StateSpaceDualSpec)
    return take_state_space_dual(source, ours, f"{theirs}.mixer", spec)
