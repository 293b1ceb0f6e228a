"""Zamba2: Mamba-2 layers; in front of some of them one of a few transformer blocks in turn, which
those layers share."""

from __future__ import annotations

import math
from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.shared_block import SharedBlockSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.state_space_config import read_head_groups
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_linear,
    take_norm,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(norm="final_layernorm")
_MAMBA, _SHARED = "linear_attention", "hybrid"
_LARGEST = 1 << 24
_LONG_CONTEXT = 16384
# Where the family's first model has its blocks.
_DEFAULT_PLACES = (*range(6, 48, 6), 47, 51)


def read_config(reader: ConfigReader) -> ModelConfig:
    _ignore_unused(reader)
    hidden = reader.integer("hidden_size", maximum=_LARGEST)
    heads = reader.integer("num_attention_heads", 32, maximum=1 << 14)
    key = "attention_head_dim" if "attention_head_dim" in reader else "head_dim"
    sizes = read_sizes(
        reader,
        max_context=4096,
        head_dim=reader.integer(key, 2 * hidden // heads, maximum=1 << 14),
        intermediate=4 * hidden,
        layers=54,
    )
    if reader.boolean("use_long_context", False):
        sizes = replace(sizes, max_context=_LONG_CONTEXT)
    norm = read_rms_norm(reader, 1e-5)
    recurrent = _read_state_space(reader, hidden)
    plain = _read_block(reader, sizes, norm, recurrent)
    kinds = _layer_types(reader, sizes.layers)
    places = [index for index, kind in enumerate(kinds) if kind == _SHARED]
    reader.require("hybrid_layer_ids", [*places])
    blocks = reader.integer("num_mem_blocks", 1, maximum=1 << 12)
    tied = reader.boolean("tie_word_embeddings", True)
    layers = [LayerSpec(recurrent, None)] * sizes.layers
    for turn, index in enumerate(places):
        # transformers ties all that can be tied or nothing, the blocks too.
        block = replace(plain, home=places[turn % blocks] if tied else index, turn=turn)
        layers[index] = LayerSpec(block, None, wiring="bare")
    return sizes.model("zamba2", tuple(layers), norm, tied)


def _ignore_unused(reader: ConfigReader) -> None:
    # How steps were drawn, implementations, and second names for sizes.
    reader.ignore("time_step_max", "time_step_floor", "chunk_size", "use_mamba_kernels")
    reader.ignore("use_mem_eff_path", "num_logits_to_keep", "kv_channels", "num_query_groups")
    reader.ignore("ffn_hidden_size", "lora_rank", "head_dim", "attention_head_dim")
    # transformers has no upper limit to a step, and always a bias in the convolution.
    reader.limits("time_step_limit")
    reader.ignore("use_conv_bias")
    # An MLP always has a gate and adapters.
    reader.ignore("gated_linear_unit", "use_shared_block_lora")
    reader.ignore("use_shared_mlp_lora", "use_shared_mlp_adapter")


def _layer_types(reader: ConfigReader, layers: int) -> list[str]:
    key = "layers_block_type" if "layers_block_type" in reader else "layer_types"
    reader.ignore("layers_block_type", "layer_types")
    default = [_SHARED if index in _DEFAULT_PLACES else _MAMBA for index in range(layers)]
    kinds = [_MAMBA if kind == "mamba" else kind for kind in reader.strings(key, default, layers)]
    for kind in kinds:
        if kind not in (_MAMBA, _SHARED):
            raise reader.wrong(key, kind, f"{_MAMBA} or {_SHARED}")
    return kinds


def _read_state_space(reader: ConfigReader, hidden: int) -> StateSpaceDualSpec:
    heads = reader.integer("n_mamba_heads", 8, maximum=1 << 14)
    inner = int(reader.positive("mamba_expand", 2) * hidden)
    head_dim = reader.integer("mamba_headdim", inner // heads, maximum=_LARGEST)
    if heads * head_dim != inner:
        raise reader.error(
            f"n_mamba_heads {heads} of {head_dim} values are {heads * head_dim},"
            f" mamba_expand makes {inner}"
        )
    groups = read_head_groups(reader, "mamba_ngroups", 1, heads)
    bias = reader.boolean("add_bias_linear", False)
    return StateSpaceDualSpec(
        heads,
        head_dim,
        state=reader.integer("mamba_d_state", 64, maximum=_LARGEST),
        groups=groups,
        conv_width=reader.integer("mamba_d_conv", 4, 2, 1 << 10),
        input_bias=bias,
        output_bias=bias,
        norm_eps=1e-5,  # whatever the other norms have
        norm_groups=groups,
        step_limit=(reader.number("time_step_min", 0.001), math.inf),
    )


def _read_block(
    reader: ConfigReader, sizes: Sizes, norm: NormSpec, own: StateSpaceDualSpec
) -> SharedBlockSpec:
    width = 2 * sizes.hidden
    reader.require("attention_hidden_size", width)
    rope = read_rope(reader, sizes.head_dim, sizes.max_context)
    adapters = reader.boolean("use_shared_attention_adapter", False)
    if adapters and not sizes.heads * sizes.head_dim == sizes.kv_heads * sizes.head_dim == width:
        raise reader.error(
            f"use_shared_attention_adapter is set: heads of {width} values in all are required,"
            f" found {sizes.heads} and {sizes.kv_heads} of {sizes.head_dim}"
        )
    return SharedBlockSpec(
        own,
        home=0,
        turn=0,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=rope if reader.boolean("use_mem_rope", False) else None,
        intermediate=sizes.intermediate,
        activation=reader.activation("hidden_act", "gelu"),
        bias=own.input_bias,
        norm=norm,
        adapter_rank=reader.integer("adapter_rank", 128, maximum=_LARGEST),
        attention_adapters=adapters,
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, StateSpaceDualSpec):
        return take_state_space_dual(source, ours, f"{theirs}.mamba", spec)
    assert isinstance(spec, SharedBlockSpec)
    assert isinstance(spec.own, StateSpaceDualSpec)
    own = f"{theirs}.mamba_decoder"
    home = f"{source.names.body}layers.{spec.home}"
    shared = f"{home}.shared_transformer"
    weights = take_state_space_dual(source, f"{ours}.own", f"{own}.mamba", spec.own)
    weights[f"{ours}.norm.weight"] = take_norm(source, f"{own}.input_layernorm.weight")
    weights |= take_linear(source, f"{ours}.output", f"{theirs}.linear", bias=False)
    weights |= _take_adapters(source, ours, shared, spec)
    if theirs == home:
        weights |= _take_block(source, f"{ours}.block", shared, spec)
    return weights


def _take_adapters(source: TensorSource, ours: str, shared: str, spec: SharedBlockSpec) -> Weights:
    lists = {"gate_up": "feed_forward.gate_up_proj_adapter_list"}
    if spec.attention_adapters:
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            lists[name] = f"self_attn.linear_{short}_adapter_list"
    weights: Weights = {}
    for name, published in lists.items():
        for part, number in (("narrow", 0), ("widen", 1)):
            stored = f"{shared}.{published}.{spec.turn}.{number}"
            weights |= take_linear(source, f"{ours}.{name}_adapter.{part}", stored, bias=False)
        # Blocks that are not tied hold the adapters of one another's turns too.
        source.ignore_under(f"{shared}.{published}.")
    return weights


def _take_block(source: TensorSource, ours: str, shared: str, spec: SharedBlockSpec) -> Weights:
    attention, mlp = f"{shared}.self_attn", f"{shared}.feed_forward"
    weights = {
        f"{ours}.norm.weight": take_norm(source, f"{shared}.input_layernorm.weight"),
        f"{ours}.feed_forward_norm.weight": take_norm(source, f"{shared}.pre_ff_layernorm.weight"),
    }
    for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        weights |= take_linear(source, f"{ours}.{name}", f"{attention}.{short}_proj", bias=False)
    weights |= take_linear(source, f"{ours}.gate_up", f"{mlp}.gate_up_proj", spec.bias)
    return weights | take_linear(source, f"{ours}.down", f"{mlp}.down_proj", spec.bias)
