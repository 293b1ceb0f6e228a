"""A config's rotary settings become a RopeSpec: `rope_parameters` as transformers 5 saves them, or
the published `rope_theta` with `rope_scaling`, which wins where a config carries both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgewright.artifacts.json_text import Json
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope import RopeParameters, RopeSpec, build_rope

_NUMBERS = {
    "factor": "factor",
    "attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}


def read_rope(
    reader: ConfigReader,
    head_dim: int,
    max_positions: int,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    scaling: Mapping[str, Json] | None = None,
    part: float | None = None,
    inert: Sequence[str] = (),
) -> RopeSpec:
    """`theta` and `scaling` stand in for what the config leaves out. So does `part`, how much of a
    head is rotated; without it that is the whole. `inert`: keys of the section that say nothing."""
    theta = reader.positive("rope_theta", theta)
    # A config that names its original context outside the section means it: transformers agrees.
    original = reader.integer_or_null("original_max_position_embeddings", None)
    section = rope_section(reader) or reader.stand_in(scaling or {})
    section.ignore(*inert)
    if part is None:
        # The section's own counts where it has one.
        said = section if "partial_rotary_factor" in section else reader
        said.require("partial_rotary_factor", 1)
        reader.ignore("partial_rotary_factor")
        return read_rope_section(section, head_dim, max_positions, theta, original, interleaved)
    dim = read_rotated_size(reader, section, head_dim, part)
    partial = dim < head_dim
    return read_rope_section(
        section, dim, max_positions, theta, original, interleaved, partial=partial
    )


def read_rotated_size(
    reader: ConfigReader, section: ConfigReader, head_dim: int, part: float = 1.0
) -> int:
    """How many values of a head turn; `part` where neither the config nor its section says."""
    whole = reader.positive("partial_rotary_factor", part)
    part = section.positive("partial_rotary_factor", whole)
    if part > 1:
        raise section.wrong("partial_rotary_factor", part, "at most 1")
    return int(head_dim * part)


def rope_section(reader: ConfigReader) -> ConfigReader | None:
    published, saved = reader.section("rope_scaling"), reader.section("rope_parameters")
    return published or saved


def read_rope_section(
    section: ConfigReader,
    dim: int,
    max_positions: int,
    theta: float,
    original: int | None = None,
    interleaved: bool = False,
    aliases: Mapping[str, str] | None = None,
    partial: bool = False,
    always_truncate: bool = False,
) -> RopeSpec:
    kind = section.string("rope_type", section.string("type", "default"))
    theta = section.positive("rope_theta", theta)
    inside = section.integer("original_max_position_embeddings", max_positions)
    numbers = {ours: section.number(key) for key, ours in _NUMBERS.items() if key in section}
    # What the chosen kind does not use is inert, "finetuned" always.
    section.ignore(*_NUMBERS, "finetuned")
    parameters = RopeParameters(
        kind=(aliases or {}).get(kind, kind),
        theta=theta,
        dim=dim,
        max_positions=max_positions,
        original_max_positions=original or inside,
        truncate=section.boolean("truncate", True) or always_truncate,
        interleaved=interleaved,
        partial=partial,
        short_factor=section.numbers("short_factor"),
        long_factor=section.numbers("long_factor"),
        **numbers,
    )
    section.finish()
    try:
        return build_rope(parameters)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise section.error(str(error)) from None
