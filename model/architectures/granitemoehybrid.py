"""Granite 4: Mamba-2 layers and a few of attention, with granite's multipliers; an MLP in each
layer, beside experts where the model has any."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import (
    FeedForwardSpec,
    LayerSpec,
    MixerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
)
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import fused_experts, one_dtype
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.moe_config import read_moe
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.state_space_config import read_state_space_dual
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    split_rows,
    take_attention,
    take_linear,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(feed_forward="shared_mlp")
_ATTENTION = ("full_attention", "attention")
_RECURRENT = ("linear_attention", "mamba")


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.ignore("init_method", "normalization_function")
    sizes = read_sizes(reader, max_context=2048)
    norm = read_rms_norm(reader)
    attention = _read_attention(reader, sizes)
    recurrent = read_state_space_dual(reader, sizes.hidden, norm)
    feed_forward = _read_feed_forward(reader, sizes)
    residual = reader.number("residual_multiplier", 1.0)
    layers = tuple(
        LayerSpec(attention if attends else recurrent, feed_forward, residual_scale=residual)
        for attends in _read_attends(reader, sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return replace(
        sizes.model("granitemoehybrid", layers, norm, tied),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / reader.positive("logits_scaling", 1.0),
    )


def _read_attention(reader: ConfigReader, sizes: Sizes) -> AttentionSpec:
    bias = reader.boolean("attention_bias", False)
    rope = read_rope(reader, sizes.head_dim, sizes.max_context)
    turns = reader.string("position_embedding_type", "nope") == "rope"
    return replace(
        sizes.attention,
        scale=reader.number("attention_multiplier", 1.0),
        rope=rope if turns else None,
        qkv_bias=bias,
        output_bias=bias,
    )


def _read_feed_forward(reader: ConfigReader, sizes: Sizes) -> FeedForwardSpec:
    shared = MlpSpec(
        reader.integer("shared_intermediate_size", 1024, maximum=1 << 24),
        reader.activation("hidden_act", "silu"),
    )
    if reader.integer("num_local_experts", 8, minimum=0) == 0:
        reader.ignore("num_experts_per_tok")
        return shared
    experts = read_moe(reader, sizes.intermediate, experts=8, top_k=2)
    return replace(experts, scoring="softmax_of_chosen", shared=shared)


def _read_attends(reader: ConfigReader, layers: int) -> list[bool]:
    """For each layer, whether it is attention."""
    key = "layer_types" if "layer_types" in reader else "layers_block_type"
    reader.ignore("layer_types", "layers_block_type")
    types = reader.strings(key, [_RECURRENT[0]] * layers, layers)
    for name in types:
        if name not in _ATTENTION + _RECURRENT:
            raise reader.wrong(key, name, f"one of {', '.join(_ATTENTION + _RECURRENT)}")
    return [name in _ATTENTION for name in types]


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer, mlp=_take_mlp, experts=_take_experts)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec)
    assert isinstance(spec, StateSpaceDualSpec)
    return take_state_space_dual(source, ours, f"{theirs}.mamba", spec)


def _take_mlp(source: TensorSource, ours: str, theirs: str, spec: MlpSpec) -> Weights:
    fused = source.take(f"{theirs}.input_linear.weight")
    gate, up = split_rows(fused, (spec.intermediate, spec.intermediate))
    return {
        f"{ours}.gate.weight": gate,
        f"{ours}.up.weight": up,
        f"{ours}.down.weight": source.take(f"{theirs}.output_linear.weight"),
    }


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    theirs = f"{layer}.block_sparse_moe"
    assert spec.shared is not None
    weights = _take_mlp(source, f"{ours}.shared", f"{layer}.shared_mlp", spec.shared)
    if f"{theirs}.input_linear.weight" in source:
        names = ("router.layer", "input_linear.weight", "output_linear.weight")
    else:  # as transformers holds them in memory
        names = ("router", "experts.gate_up_proj", "experts.down_proj")
    router, gate_up, down = (f"{theirs}.{name}" for name in names)
    weights |= take_linear(source, f"{ours}.router", router, bias=False)
    found = fused_experts(source.take(gate_up), source.take(down))
    return weights | one_dtype({f"{ours}.{part}": tensor for part, tensor in found.items()})
