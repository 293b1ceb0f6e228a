"""Kimi Linear: delta layers whose memory fades channel by channel, every fourth latent attention
without rotation; after the first layer, experts chosen by a sigmoid and a learned correction."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.delta_config import read_linear_layers
from edgewright.model.delta_weights import take_gated_delta, take_qkv
from edgewright.model.expert_weights import take_experts
from edgewright.model.latent_config import LATENT_NORM, LatentSizes, read_latent_dims
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.mixers.latent_attention import LatentAttentionSpec
from edgewright.model.moe_config import read_grouped_moe
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.weights import Names, TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    variants={
        # Published of layers with experts; transformers saves the others so too.
        ".mlp.": ".block_sparse_moe.",
        # As transformers holds them in memory.
        **{
            f".self_attn.{part}": f".self_attn.forget_gate.{part}"
            for part in ("f_a_proj", "f_b_proj", "dt_bias", "A_log")
        },
    }
)
_SPELLINGS = {
    "max_position_embeddings": "model_max_length",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
    "n_group": "num_expert_group",
    "norm_topk_prob": "moe_renormalize",
}
_EXPERTS = MoeSpec(
    experts=256,
    top_k=8,
    intermediate=1024,
    scoring="sigmoid",
    renormalise_eps=1e-20,
    correction=True,
    group_score="best_two",
    weight_scale=2.446,
)
_EXPERT_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_PROJECTIONS = {
    "gate_down": "g_a_proj",
    "gate": "g_b_proj",
    "decay_down": "f_a_proj",
    "decay": "f_b_proj",
    "beta": "b_proj",
}
_MOST_HEADS = 1 << 14


def read_config(reader: ConfigReader) -> ModelConfig:
    # transformers takes this name too, where it does not find the published one.
    reader.spell({"n_routed_experts": "num_local_experts"})
    reader.spell(_SPELLINGS)
    _ignore_unused(reader)
    sizes = read_sizes(reader, max_context=1048576, head_dim=64, intermediate=9216)
    if sizes.kv_heads != sizes.heads:
        raise reader.wrong("num_key_value_heads", sizes.kv_heads, f"one a head, {sizes.heads}")
    norm = read_rms_norm(reader, 1e-5)
    attention = _read_attention(reader, sizes)
    section = reader.section("linear_attn_config") or reader.stand_in({})
    delta = _read_delta(reader, section, norm.eps)
    linear_layers = read_linear_layers(reader, _default_linear(section, sizes.layers))
    section.finish()
    experts = replace(
        read_grouped_moe(reader, _EXPERTS, shared=1),
        renormalise=reader.boolean("norm_topk_prob", True),
    )
    dense = MlpSpec(sizes.intermediate, experts.activation)
    layers = tuple(
        LayerSpec(delta if linear else attention, experts if sparse else dense)
        for linear, sparse in zip(linear_layers, _read_sparse(reader, sizes.layers), strict=True)
    )
    return sizes.model("kimi_linear", layers, norm, False)


def _ignore_unused(reader: ConfigReader) -> None:
    """What transformers does not read: it rotates and ties nothing, and knows one way to choose
    experts."""
    reader.ignore("rope_theta", "rope_scaling", "tie_word_embeddings", "num_nextn_predict_layers")
    reader.ignore("mla_use_nope", "moe_layer_freq", "moe_router_activation_func")
    reader.ignore("use_grouped_topk")


def _read_attention(reader: ConfigReader, sizes: Sizes) -> LatentAttentionSpec:
    default = LatentSizes(query_rank=None)
    shared_key = reader.integer("qk_rope_head_dim", default.rope, maximum=1 << 20)
    spec = read_latent_dims(reader, default, sizes, shared_key)
    head_dim = spec.nope_dim + spec.rope_dim
    reader.require("qk_head_dim", head_dim)
    bias = reader.boolean("attention_bias", False)
    return replace(
        spec,
        scale=head_dim**-0.5,
        latent_norm=LATENT_NORM,
        query_norm=None if spec.query_rank is None else LATENT_NORM,
        query_down_bias=bias and spec.query_rank is not None,
        latent_bias=bias,
        output_bias=bias,
    )


def _read_delta(reader: ConfigReader, section: ConfigReader, norm_eps: float) -> GatedDeltaSpec:
    """The published section counts before the keys that transformers saves."""
    heads = reader.integer("linear_num_heads", 32, maximum=_MOST_HEADS)
    heads = section.integer("num_heads", heads, maximum=_MOST_HEADS)
    dim = reader.integer("linear_head_dim", 128, maximum=_MOST_HEADS)
    dim = section.integer("head_dim", dim, maximum=_MOST_HEADS)
    taps = reader.integer("linear_conv_kernel_dim", 4, minimum=2, maximum=1 << 10)
    taps = section.integer("short_conv_kernel_size", taps, minimum=2, maximum=1 << 10)
    return GatedDeltaSpec(
        heads,
        heads,
        dim,
        dim,
        taps,
        norm_eps,
        activation=reader.activation("hidden_act", "silu"),
        decay="channel",
        gate="sigmoid",
        rank=dim,
    )


def _default_linear(section: ConfigReader, layers: int) -> list[bool]:
    """What the published section says of layers counted from 1, else every fourth attends."""
    full, linear = section.integers("full_attn_layers", []), section.integers("kda_layers", [])
    if not full and not linear:
        return [index == 0 or index % 4 != 0 for index in range(layers)]
    if sorted(full + linear) != list(range(1, layers + 1)):
        raise section.error(f"full_attn_layers and kda_layers do not share out {layers} layers")
    return [index + 1 in linear for index in range(layers)]


def _read_sparse(reader: ConfigReader, layers: int) -> list[bool]:
    """Which layers have experts."""
    first = reader.integer("first_k_dense_replace", 1, minimum=0)
    default = ["dense" if index < first else "sparse" for index in range(layers)]
    types = reader.strings("mlp_layer_types", default, layers)
    for name in types:
        if name not in ("dense", "sparse"):
            raise reader.wrong("mlp_layer_types", name, "dense or sparse")
    return [name == "sparse" for name in types]


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer, experts=_take_experts)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if not isinstance(spec, GatedDeltaSpec):
        return take_latent_attention(source, ours, theirs, spec)
    theirs = f"{theirs}.self_attn"
    projections = {
        part: source.take(f"{theirs}.{name}.weight") for part, name in _PROJECTIONS.items()
    }
    return take_gated_delta(
        source, ours, theirs, spec, projections | {"qkv": take_qkv(source, theirs)}
    )


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec, _EXPERT_PARTS)
