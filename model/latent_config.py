"""A config's latent attention, in the names that DeepSeek gave it, becomes a spec."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgewright.model.config import NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.latent_attention import LatentAttentionSpec
from edgewright.model.rope import yarn_mscale
from edgewright.model.rope_config import read_rope, rope_section
from edgewright.model.sizes import Sizes, read_sizes

_LARGEST = 1 << 20
# Whatever a config says of its other norms: published code leaves these at its default.
LATENT_NORM = NormSpec("rms", 1e-6)


@dataclass(frozen=True)
class LatentSizes:
    """What a family has where its config says nothing."""

    rank: int = 512
    query_rank: int | None = 1536
    nope: int = 128
    rope: int = 64
    value: int | None = 128  # None: the hidden size shared out among the heads


def read_latent_attention(
    reader: ConfigReader, default: LatentSizes, *, max_context: int, interleaved: bool
) -> tuple[Sizes, LatentAttentionSpec]:
    rope_dim = reader.integer("qk_rope_head_dim", default.rope, maximum=_LARGEST)
    sizes = read_sizes(reader, max_context=max_context, head_dim=rope_dim)
    if sizes.kv_heads != sizes.heads:
        raise reader.wrong("num_key_value_heads", sizes.kv_heads, f"one a head, {sizes.heads}")
    spec = read_latent_dims(reader, default, sizes, rope_dim)
    # Carried by configs that transformers saved; other values would mean another model.
    reader.require("head_dim", rope_dim)
    reader.require("qk_head_dim", spec.nope_dim + rope_dim)
    bias = reader.boolean("attention_bias", False)
    by_rank = spec.query_rank is not None
    return sizes, replace(
        spec,
        scale=_read_scale(reader, spec.nope_dim + rope_dim),
        rope=read_rope(reader, rope_dim, sizes.max_context, interleaved=interleaved),
        latent_norm=LATENT_NORM,
        query_norm=LATENT_NORM if by_rank else None,
        query_down_bias=bias and by_rank,
        latent_bias=bias,
        output_bias=bias,
    )


def read_latent_dims(
    reader: ConfigReader, default: LatentSizes, sizes: Sizes, rope_dim: int
) -> LatentAttentionSpec:
    shared_out = default.value or sizes.hidden // sizes.heads
    return LatentAttentionSpec(
        heads=sizes.heads,
        nope_dim=reader.integer("qk_nope_head_dim", default.nope, maximum=_LARGEST),
        rope_dim=rope_dim,
        value_dim=reader.integer("v_head_dim", shared_out, maximum=_LARGEST),
        rank=reader.integer("kv_lora_rank", default.rank, maximum=_LARGEST),
        scale=1.0,
        query_rank=reader.integer_or_null("q_lora_rank", default.query_rank),
    )


def _read_scale(reader: ConfigReader, head_dim: int) -> float:
    """A stretched rotation that names `mscale_all_dim` sharpens the scores too."""
    scale: float = head_dim**-0.5
    section = rope_section(reader)
    if section is None or section.string("rope_type", section.string("type", "default")) == (
        "default"
    ):
        return scale
    if "mscale_all_dim" not in section or not (power := section.number("mscale_all_dim")):
        return scale
    return scale * yarn_mscale(section.positive("factor"), power) ** 2
