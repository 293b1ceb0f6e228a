"""A config and lazy tensors go in; a checkpoint directory comes out, a piece at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json
from edgewright.model.lazy import LazyTensor

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 8


def write_checkpoint(
    out: Path,
    settings: Mapping[str, Json],
    tensors: Mapping[str, LazyTensor],
    copied: Iterable[Path] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Into `out`, a directory that exists: config.json, model.safetensors and files as they are."""
    try:
        (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for path in copied:
            shutil.copyfile(path, out / path.name)
        _write_tensors(out / "model.safetensors", tensors, advance)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from None


def _write_tensors(
    path: Path, tensors: Mapping[str, LazyTensor], advance: Callable[[int], None]
) -> None:
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        shape: list[Json] = [*tensor.shape]
        offsets: list[Json] = [begin, end]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for piece in tensor.pieces():
                file.write(piece)
                advance(piece.nbytes)
                del piece
