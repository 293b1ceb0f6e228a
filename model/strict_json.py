"""Bytes from an untrusted checkpoint in, a JSON object out, or one line saying what is wrong."""

from __future__ import annotations

import stat
from pathlib import Path

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, parse_json


def parse_object(data: bytes, origin: str, infinity: bool = False) -> dict[str, Json]:
    """`origin` names the file in errors; `infinity` takes that word for a number."""
    parsed = parse_json(data, origin, CheckpointError, infinity=infinity)
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{origin}: a JSON object is required, found {_kind(parsed)}")
    return parsed


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


def _kind(value: object) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
