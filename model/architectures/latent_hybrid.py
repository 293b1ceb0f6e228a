"""Our own: latent attention and Mamba-2 in turn, each before a gated MLP. What `edgewright train`
makes, and what `edgewright convert` makes of a model that kept whole keys and values."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.mixers.latent_attention import LatentAttentionSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.rope import RopeSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.state_space_config import read_head_groups
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()

LATENT_ATTENTION, MAMBA2 = "latent_attention", "mamba2"


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes = read_sizes(reader, max_context=2048, head_dim=1)
    norm = read_rms_norm(reader)
    types = reader.strings("mixer_types", [LATENT_ATTENTION] * sizes.layers, sizes.layers)
    for name in types:
        if name not in (LATENT_ATTENTION, MAMBA2):
            raise reader.wrong("mixer_types", name, f"{LATENT_ATTENTION} or {MAMBA2}")
    latent = iter(_read_latent(reader, sizes, norm, types.count(LATENT_ATTENTION)))
    mamba = _read_mamba(reader, norm) if MAMBA2 in types else None
    mixers: list[MixerSpec] = [
        mamba if mamba and name == MAMBA2 else next(latent) for name in types
    ]
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    residual = reader.number("residual_multiplier", 1.0)
    layers = tuple(LayerSpec(mixer, feed_forward, "pre", residual) for mixer in mixers)
    tied = reader.boolean("tie_word_embeddings", False)
    return replace(
        sizes.model("latent_hybrid", layers, norm, tied),
        embedding_scale=reader.number("embedding_multiplier", 1.0),
        logit_scale=reader.number("logit_multiplier", 1.0),
    )


def _read_latent(
    reader: ConfigReader, sizes: Sizes, norm: NormSpec, count: int
) -> list[LatentAttentionSpec]:
    """The latent layers' mixers, which may each have a rotation and a window of their own."""
    if not count:
        reader.ignore("rope_parameters")
        return []
    nope, rope_dim = reader.integer("qk_nope_head_dim"), reader.integer("qk_rope_head_dim")
    scale = reader.positive("attention_multiplier", (nope + rope_dim) ** -0.5)
    has_norm = reader.boolean("latent_norm", True)
    spec = LatentAttentionSpec(
        heads=sizes.heads,
        nope_dim=nope,
        rope_dim=rope_dim,
        value_dim=reader.integer("v_head_dim"),
        rank=reader.integer("kv_lora_rank"),
        scale=scale,
        latent_norm=norm if has_norm else None,
        query_bias=reader.boolean("query_bias", False),
        latent_bias=reader.boolean("latent_bias", False),
        output_bias=reader.boolean("output_bias", False),
    )
    ropes = _read_ropes(reader, rope_dim, sizes.max_context, count)
    windows = reader.integers("attention_windows", [0] * count)
    if len(windows) != count or min(windows) < 0:
        raise reader.wrong("attention_windows", list(windows), f"{count} windows, 0 for none")
    return [
        replace(spec, rope=rope, window=window) for rope, window in zip(ropes, windows, strict=True)
    ]


def _read_ropes(reader: ConfigReader, dim: int, max_context: int, count: int) -> list[RopeSpec]:
    """One for all layers, or the frequencies that a conversion kept in each."""
    given = reader.raw("rope_frequencies")
    if given is None:
        return [read_rope(reader, dim, max_context)] * count
    if not isinstance(given, list) or len(given) != count:
        raise reader.wrong("rope_frequencies", given, f"a list of {count} lists")
    ropes = []
    for index, _ in enumerate(given):
        each = reader.stand_in({"rope_frequencies": given[index]})
        frequencies = each.numbers("rope_frequencies")
        if 2 * len(frequencies) != dim:
            raise reader.wrong("rope_frequencies", len(frequencies), f"{dim // 2} in each list")
        ropes.append(RopeSpec(frequencies))
    return ropes


def _read_mamba(reader: ConfigReader, norm: NormSpec) -> StateSpaceDualSpec:
    heads = reader.integer("mamba_n_heads")
    groups = read_head_groups(reader, "mamba_n_groups", 1, heads)
    return StateSpaceDualSpec(
        heads=heads,
        head_dim=reader.integer("mamba_d_head"),
        state=reader.integer("mamba_d_state"),
        groups=groups,
        conv_width=reader.integer("mamba_d_conv", 4, minimum=2),
        norm_eps=norm.eps,
        norm_groups=groups,
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, StateSpaceDualSpec):
        return take_state_space_dual(source, ours, f"{theirs}.mamba", spec)
    return take_latent_attention(source, ours, theirs, spec)
