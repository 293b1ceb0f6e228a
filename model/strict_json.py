"""Bytes from an untrusted checkpoint in, a JSON object out, or one line saying what is wrong."""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from pathlib import Path
from typing import TypeAlias, cast

from edgewright.artifacts.errors import CheckpointError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def parse_object(data: bytes, origin: str) -> dict[str, Json]:
    """`origin` names the file in errors. Duplicate keys hide one value behind another: refused."""
    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise CheckpointError(f"{origin}: the JSON is nested too deeply") from None
    except ValueError as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise CheckpointError(f"{origin}: not valid JSON: {one_line(str(error))}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{origin}: a JSON object is required, found {_kind(parsed)}")
    return cast(dict[str, Json], parsed)


def read_object(path: Path, limit_bytes: int) -> dict[str, Json]:
    return parse_object(read_small_file(path, limit_bytes), str(path))


def read_small_file(path: Path, limit_bytes: int) -> bytes:
    """A whole regular file, which may be a link, of at most `limit_bytes`."""
    size = regular_file_size(path)
    if size > limit_bytes:
        raise CheckpointError(f"{path}: {size} bytes, at most {limit_bytes} are expected here")
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def regular_file_size(path: Path) -> int:
    """Links are followed (download caches use them); a pipe or a device would hang the reader."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a regular file")
    return status.st_size


def one_line(text: str, limit: int = 200) -> str:
    """Text from a file, fit to stand in an error: printable and short."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "…"


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {one_line(twice, 80)} appears twice")
    return found


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{one_line(digits, 40)} is too large")
    return value


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
