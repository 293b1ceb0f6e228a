"""Jamba: mamba layers, every so many attention without rotation; feed-forward halves of which
every other has experts."""

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
from edgewright.model.expert_weights import take_experts
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.selective_scan import SelectiveScanSpec
from edgewright.model.moe_config import read_expert_count, read_moe
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.state_space_config import read_rank
from edgewright.model.state_space_weights import take_selective_scan
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
    reader.ignore("calc_logits_for_entire_prompt", "n_ctx", "num_logits_to_keep")
    reader.ignore("use_associative_scan", "use_mamba_kernels", "use_mambapy")
    # Always normalised, never within a window, whatever these say.
    reader.ignore("mamba_inner_layernorms", "sliding_window")
    sizes = read_sizes(reader, max_context=262144, kv_heads=8)
    norm = read_rms_norm(reader)
    recurrent = _read_selective_scan(reader, sizes.hidden, norm.eps)
    dense = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    experts = _read_experts(reader, dense)
    attends = _read_places(reader, "attn_layer", 8, 4, sizes.layers)
    has_experts = _read_places(reader, "expert_layer", 2, 1, sizes.layers)
    layers = tuple(
        LayerSpec(
            sizes.attention if attention else recurrent,
            experts if routed else dense,
        )
        for attention, routed in zip(attends, has_experts, strict=True)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("jamba", layers, norm, tied)


def _read_selective_scan(reader: ConfigReader, hidden: int, eps: float) -> SelectiveScanSpec:
    return SelectiveScanSpec(
        inner=hidden * reader.integer("mamba_expand", 2, maximum=1 << 24),
        state=reader.integer("mamba_d_state", 16, maximum=1 << 24),
        rank=read_rank(reader, "mamba_dt_rank", hidden),
        conv_width=reader.integer("mamba_d_conv", 4, minimum=2, maximum=1 << 10),
        conv_bias=reader.boolean("mamba_conv_bias", True),
        bias=reader.boolean("mamba_proj_bias", False),
        activation=reader.activation("hidden_act", "silu"),
        norms="weighted",
        norm_eps=eps,
    )


def _read_experts(reader: ConfigReader, dense: MlpSpec) -> FeedForwardSpec:
    """One expert is an MLP: nothing is chosen."""
    if read_expert_count(reader, 16) == 1:
        reader.ignore("num_experts_per_tok")
        return dense
    experts = read_moe(reader, dense.intermediate, experts=16, top_k=2)
    return replace(experts, renormalise=False)


def _read_places(
    reader: ConfigReader, kind: str, period: int, offset: int, layers: int
) -> list[bool]:
    period = reader.integer(f"{kind}_period", period)
    offset = reader.integer(f"{kind}_offset", offset, minimum=0)
    if offset >= period:
        raise reader.error(f"{kind}_offset {offset} is not below {kind}_period {period}")
    return [index % period == offset for index in range(layers)]


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer, experts=_take_experts)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec)
    assert isinstance(spec, SelectiveScanSpec)
    return take_selective_scan(source, ours, f"{theirs}.mamba", spec)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.feed_forward", spec, router="router")
