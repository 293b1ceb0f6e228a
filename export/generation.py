"""What the checkpoint asks of generation: its generation_config.json, else its config.json."""

from __future__ import annotations

from collections.abc import Mapping

from edgewright.artifacts import GenerationDefaults
from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import Checkpoint
from edgewright.model.strict_json import Json


def read_generation(checkpoint: Checkpoint) -> GenerationDefaults:
    asked: Mapping[str, Json] = checkpoint.generation_config or {}

    def token_id(key: str) -> int | None:
        ids = _token_ids(asked.get(key, checkpoint.config.get(key)), key)
        return ids[0] if ids else None

    eos = asked.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    top_k = _number(asked, "top_k")
    do_sample = asked.get("do_sample")
    return GenerationDefaults(
        eos_token_ids=_token_ids(eos, "eos_token_id"),
        bos_token_id=token_id("bos_token_id"),
        pad_token_id=token_id("pad_token_id"),
        do_sample=do_sample if isinstance(do_sample, bool) else None,
        temperature=_number(asked, "temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=_number(asked, "top_p"),
        min_p=_number(asked, "min_p"),
        repetition_penalty=_number(asked, "repetition_penalty"),
    )


def _token_ids(value: Json, key: str) -> tuple[int, ...]:
    """A negative id is how some checkpoints say that they have none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [item for item in listed if type(item) is int]
    if len(ids) != len(listed):
        raise CheckpointError(f"'{key}' is {str(value)[:60]}; one or more token ids are needed")
    return tuple(item for item in ids if item >= 0)


def _number(asked: Mapping[str, Json], key: str) -> float | None:
    value = asked.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"generation_config.json: '{key}' is {str(value)[:60]}, not a number")
    return float(value)
