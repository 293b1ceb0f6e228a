"""Phi-3 and Phi-4-mini: llama with fused projections, partly rotated heads and longrope."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.rope import RopeSpec
from edgewright.model.rope_config import read_rope_section, read_rotated_size, rope_section
from edgewright.model.sizes import Sizes, read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights, split_rows

INERT_TENSORS: tuple[str, ...] = ()
# Both are names that older configs give longrope.
_ALIASES = {"su": "longrope", "yarn": "longrope"}


def read_config(reader: ConfigReader) -> ModelConfig:
    for switch in ("attention_bias", "mlp_bias", "lm_head_bias"):
        reader.require(switch, False)
    for factor in ("full_attn_mod", "interpolate_factor"):
        reader.require(factor, 1)
    sizes = read_sizes(reader, max_context=4096)
    mixer = replace(
        sizes.attention,
        rope=_read_rope(reader, sizes),
        window=reader.integer_or_null("sliding_window", None) or 0,
    )
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = (LayerSpec(mixer, feed_forward),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("phi3", layers, read_rms_norm(reader, 1e-5), tied)


def _read_rope(reader: ConfigReader, sizes: Sizes) -> RopeSpec:
    original = reader.integer("original_max_position_embeddings", 4096)
    theta = reader.positive("rope_theta", 10000.0)
    section = rope_section(reader) or reader.stand_in({})
    dim = read_rotated_size(reader, section, sizes.head_dim)
    rope = read_rope_section(
        section,
        dim,
        sizes.max_context,
        theta,
        original,
        aliases=_ALIASES,
        partial=dim < sizes.head_dim,
    )
    kind = section.string("rope_type", section.string("type", "default"))
    if _ALIASES.get(kind, kind) not in ("default", "longrope"):
        raise section.wrong("rope_type", kind, "default or longrope")
    return rope


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_attention, mlp=_take_mlp)


def _take_attention(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    assert isinstance(spec, AttentionSpec)
    fused = source.take(f"{theirs}.self_attn.qkv_proj.weight")
    kv_width = spec.kv_heads * spec.head_dim
    parts = split_rows(fused, (spec.heads * spec.head_dim, kv_width, kv_width))
    weights = {
        f"{ours}.{name}.weight": part
        for name, part in zip(("query", "key", "value"), parts, strict=True)
    }
    return weights | {f"{ours}.output.weight": source.take(f"{theirs}.self_attn.o_proj.weight")}


def _take_mlp(source: TensorSource, ours: str, theirs: str, spec: MlpSpec) -> Weights:
    fused = source.take(f"{theirs}.gate_up_proj.weight")
    gate, up = split_rows(fused, (spec.intermediate, spec.intermediate))
    down = source.take(f"{theirs}.down_proj.weight")
    return {f"{ours}.gate.weight": gate, f"{ours}.up.weight": up, f"{ours}.down.weight": down}
