"""Falcon-H1: attention and Mamba-2 side by side in every layer, each part with a multiplier."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.parallel import Branch, ParallelSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.state_space_config import (
    ignore_state_space_training,
    read_state_space_dual,
)
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    norm="final_layernorm",
    feed_forward="feed_forward",
    norms={"mixer_norm": "input_layernorm", "feed_forward_norm": "pre_ff_layernorm"},
)


def read_config(reader: ConfigReader) -> ModelConfig:
    _ignore_unused(reader)
    sizes = read_sizes(reader, max_context=8192, kv_heads=8)
    norm = read_rms_norm(reader, 1e-5)
    attention = Branch(
        _read_attention(reader, sizes),
        reader.number("attention_in_multiplier", 1.0),
        reader.number("attention_out_multiplier", 1.0),
    )
    recurrent = Branch(
        _read_state_space(reader, sizes, norm),
        reader.number("ssm_in_multiplier", 1.0),
        reader.number("ssm_out_multiplier", 1.0),
    )
    gate_scale, down_scale = _multipliers(reader, "mlp_multipliers", 2)
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
        gate_scale=gate_scale,
        down_scale=down_scale,
    )
    layers = (LayerSpec(ParallelSpec((recurrent, attention)), feed_forward),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return replace(
        sizes.model("falcon_h1", layers, norm, tied),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        logit_scale=reader.number("lm_head_multiplier", 1.0),
    )


def _ignore_unused(reader: ConfigReader) -> None:
    """Keys that published configs carry and transformers does not read."""
    ignore_state_space_training(reader)
    reader.ignore("num_logits_to_keep", "mlp_expansion_factor", "layers_block_type", "layer_types")
    reader.ignore("mamba_use_mlp", "attn_layer_indices")


def _read_attention(reader: ConfigReader, sizes: Sizes) -> AttentionSpec:
    bias = reader.boolean("attention_bias", False)
    return replace(
        sizes.attention,
        # The keys are multiplied: the cache keeps them as they are projected.
        scale=sizes.head_dim**-0.5 * reader.number("key_multiplier", 1.0),
        rope=read_rope(reader, sizes.head_dim, sizes.max_context),
        qkv_bias=bias,
        output_bias=bias,
    )


def _read_state_space(reader: ConfigReader, sizes: Sizes, norm: NormSpec) -> StateSpaceDualSpec:
    inner = reader.integer_or_null("mamba_d_ssm", 1024)
    gate, channels, write, read, step = _multipliers(reader, "ssm_multipliers", 5)
    return replace(
        read_state_space_dual(reader, sizes.hidden, norm, inner),
        output_bias=reader.boolean("projectors_bias", False),
        norm_eps=norm.eps if reader.boolean("mamba_rms_norm", False) else None,
        norm_before_gate=reader.boolean("mamba_norm_before_gate", True),
        scales=(gate, channels, write, read, step),
    )


def _multipliers(reader: ConfigReader, key: str, count: int) -> tuple[float, ...]:
    values = reader.numbers(key) or (1.0,) * count
    if len(values) != count:
        raise reader.wrong(key, list(values), f"a list of {count} numbers")
    return values


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    assert isinstance(spec, ParallelSpec)
    weights: Weights = {}
    for index, branch in enumerate(spec.branches):
        name = f"{ours}.branches.{index}"
        if isinstance(branch.mixer, AttentionSpec):
            weights |= take_attention(source, name, f"{theirs}.self_attn", branch.mixer)
        else:
            assert isinstance(branch.mixer, StateSpaceDualSpec)
            weights |= take_state_space_dual(source, name, f"{theirs}.mamba", branch.mixer)
    return weights
