"""What the checkpoint asks of generation: its generation_config.json, else its config.json."""

from __future__ import annotations

from collections.abc import Mapping

from edgewright.artifacts import GenerationDefaults
from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, one_line
from edgewright.model.checkpoint import Checkpoint


def read_generation(checkpoint: Checkpoint) -> GenerationDefaults:
    asked: Mapping[str, Json] = checkpoint.generation_config or {}

    def token_id(key: str) -> int | None:
        ids = _token_ids(asked.get(key, checkpoint.config.get(key)), key)
        return ids[0] if ids else None

    eos = asked.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    top_k = _number(asked, "top_k", 2**31)
    do_sample = asked.get("do_sample")
    return GenerationDefaults(
        eos_token_ids=_token_ids(eos, "eos_token_id"),
        bos_token_id=token_id("bos_token_id"),
        pad_token_id=token_id("pad_token_id"),
        do_sample=do_sample if isinstance(do_sample, bool) else None,
        temperature=_number(asked, "temperature", 1e6),
        top_k=None if top_k is None else int(top_k),
        top_p=_number(asked, "top_p", 1),
        min_p=_number(asked, "min_p", 1),
        repetition_penalty=_number(asked, "repetition_penalty", 1e6),
    )


def _token_ids(value: Json, key: str) -> tuple[int, ...]:
    """A negative id is how some checkpoints say that they have none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [item for item in listed if type(item) is int and item < 2**31]
    if len(ids) != len(listed):
        raise CheckpointError(
            f"'{key}' is {one_line(repr(value), 60)}; one or more token ids are needed"
        )
    return tuple(item for item in ids if item >= 0)


def _number(asked: Mapping[str, Json], key: str, most: float) -> float | None:
    value = asked.get(key)
    if value is None:
        return None
    if isinstance(value, bool | str | list | dict) or not 0 <= value <= most:
        raise CheckpointError(
            f"generation_config.json: '{key}' is {one_line(repr(value), 60)};"
            f" a number from 0 to {most:g} is needed"
        )
    return float(value)
