"""Nemotron-H and Nemotron 3: each layer is a Mamba-2 mixer, attention without rotation, an MLP of
squared relu or routed experts of the same, in the order that a pattern spells."""

from __future__ import annotations

import math
from dataclasses import replace

from edgewright.model.config import (
    LayerSpec,
    MixerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    NormSpec,
)
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import take_experts
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.moe_config import read_grouped_moe
from edgewright.model.sizes import read_sizes
from edgewright.model.state_space_config import read_head_groups
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
    take_linear,
)

# Layers that guess tokens further ahead.
INERT_TENSORS: tuple[str, ...] = (r"mtp\..*",)
NAMES = Names(
    body="backbone.",
    embedding="embeddings",
    norm="norm_f",
    feed_forward="mixer",
    norms={"mixer_norm": "norm", "feed_forward_norm": "norm"},
    variants={"backbone.": "model."},  # as transformers holds them in memory
)
_MAMBA, _ATTENTION, _MLP, _EXPERTS = "linear_attention", "full_attention", "mlp", "moe"
_LETTERS = {"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": _EXPERTS}
_OLDER_NAMES = {"mamba": _MAMBA, "attention": _ATTENTION}
_LARGEST = 1 << 24
_ROUTING = MoeSpec(
    experts=8,
    top_k=2,
    intermediate=7688,
    scoring="sigmoid",
    renormalise_eps=1e-20,
    correction=True,
    group_score="best_two",
)


def read_config(reader: ConfigReader) -> ModelConfig:
    _ignore_unused(reader)
    kinds = _layer_types(reader)
    # num_hidden_layers may differ: the pattern is what counts.
    sizes = read_sizes(
        reader, max_context=4096, head_dim=128, intermediate=21504, layers=len(kinds), kv_heads=8
    )
    norm = NormSpec("rms", reader.positive("layer_norm_epsilon", 1e-5))
    bias = reader.boolean("mlp_bias", False)
    activation = reader.activation("mlp_hidden_act", "relu2")
    if activation != "relu_squared" and _EXPERTS in kinds:
        raise reader.wrong("mlp_hidden_act", activation, "relu2, for routed experts")
    layers: dict[str, LayerSpec] = {
        _MAMBA: LayerSpec(_read_state_space(reader, norm), None),
        _ATTENTION: LayerSpec(sizes.attention, None),
        _MLP: LayerSpec(None, MlpSpec(sizes.intermediate, activation, bias, gated=False)),
        _EXPERTS: LayerSpec(None, _read_experts(reader, bias)),
    }
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("nemotron_h", tuple(layers[kind] for kind in kinds), norm, tied)


def _ignore_unused(reader: ConfigReader) -> None:
    # How it was trained, precisions and implementations.
    reader.ignore("rescale_prenorm_residual", "residual_in_fp32", "mamba_ssm_cache_dtype")
    reader.ignore("chunk_size", "mamba_chunk_size", "use_mamba_kernels", "num_logits_to_keep")
    reader.ignore("moe_shared_expert_overlap")
    # Layers that guess tokens further ahead.
    reader.ignore(
        "num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"
    )
    # Keys that published configs carry and transformers does not read: it has no rotation, no
    # window, no upper limit to a step, and takes its sizes from others.
    reader.ignore("rope_theta", "partial_rotary_factor", "rope_scaling", "sliding_window")
    reader.ignore("time_step_rank", "time_step_max", "time_step_floor", "mamba_dt_max")
    reader.ignore("mamba_dt_init_floor", "expand", "mamba_expand", "mamba_proj_bias")
    reader.ignore("norm_eps", "rms_norm_eps")
    for key in ("time_step_limit", "mamba_dt_limit"):
        reader.limits(key)
    reader.ignore("attention_bias", "attention_head_dim")


def _layer_types(reader: ConfigReader) -> list[str]:
    pattern = reader.string("hybrid_override_pattern", "ME*-")
    unknown = set(pattern) - _LETTERS.keys()
    if unknown:
        raise reader.wrong("hybrid_override_pattern", pattern, f"letters of {''.join(_LETTERS)}")
    spelled = [_LETTERS[letter] for letter in pattern]
    key = "layers_block_type" if "layers_block_type" in reader else "layer_types"
    reader.ignore("layers_block_type", "layer_types")
    found = reader.raw(key)
    listed = len(found) if isinstance(found, list) else 0
    kinds = [_OLDER_NAMES.get(kind, kind) for kind in reader.strings(key, spelled, listed)]
    for kind in kinds:
        if kind not in _LETTERS.values():
            raise reader.wrong(key, kind, f"one of {', '.join(_LETTERS.values())}")
    if not kinds:
        raise reader.error("a model needs at least one layer")
    return kinds


def _read_state_space(reader: ConfigReader, norm: NormSpec) -> StateSpaceDualSpec:
    heads = reader.integer("mamba_num_heads", 128, maximum=1 << 14)
    groups = read_head_groups(reader, _named(reader, "mamba_n_groups", "n_groups"), 8, heads)
    bias = reader.boolean("use_bias", False)
    shortest = reader.number(_named(reader, "mamba_dt_min", "time_step_min"), 0.001)
    return StateSpaceDualSpec(
        heads,
        head_dim=reader.integer("mamba_head_dim", 64, maximum=_LARGEST),
        state=reader.integer("ssm_state_size", 128, maximum=_LARGEST),
        groups=groups,
        conv_width=reader.integer(_named(reader, "mamba_d_conv", "conv_kernel"), 4, 2, 1 << 10),
        conv_bias=reader.boolean(_named(reader, "mamba_conv_bias", "use_conv_bias"), True),
        activation=reader.activation("mamba_hidden_act", "silu"),
        input_bias=bias,
        output_bias=bias,
        norm_eps=norm.eps,
        norm_groups=groups,
        step_limit=(shortest, math.inf),
    )


def _named(reader: ConfigReader, older: str, usual: str) -> str:
    """The key that counts: an older name, where there is one, overrules the usual."""
    reader.ignore(older, usual)
    return older if older in reader else usual


def _read_experts(reader: ConfigReader, bias: bool) -> MoeSpec:
    # There is always one expert that all tokens pass, of a size of its own.
    width = reader.integer("moe_shared_expert_intermediate_size", 7688, maximum=_LARGEST)
    latent = reader.integer_or_null("moe_latent_size", None)
    return replace(
        read_grouped_moe(reader, _ROUTING, shared=1),
        activation="relu_squared",
        renormalise=reader.boolean("norm_topk_prob", True),
        shared=MlpSpec(width, "relu_squared", bias, gated=False),
        latent=latent,
        latent_bias=bias,
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer, experts=_take_experts)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.mixer", spec)
    assert isinstance(spec, StateSpaceDualSpec)
    return take_state_space_dual(source, ours, f"{theirs}.mixer", spec)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    theirs, parts = f"{layer}.mixer", {"up": "up_proj", "down": "down_proj"}
    weights = take_experts(source, ours, theirs, spec, parts)
    if spec.latent is not None:
        for name, published in (("into_latent", "fc1"), ("out_of_latent", "fc2")):
            stored = f"{theirs}.{published}_latent_proj"
            weights |= take_linear(source, f"{ours}.{name}", stored, spec.latent_bias)
    return weights
