"""A safetensors file in, its checked table of tensors out, and the bytes of any range when asked.

The header is parsed here, by hand, because a checkpoint is untrusted and each way it can be wrong
should be one line that names the tensor. Bytes are read, never mapped: mapped pages count as this
process's memory.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, one_line
from edgewright.model.lazy import TORCH_DTYPES, Dtype, LazyTensor
from edgewright.model.strict_json import parse_object, regular_file_size

# The bound of the safetensors library itself.
HEADER_LIMIT_BYTES = 100_000_000
DIMENSION_LIMIT = 16

# Bits per element of every dtype the format defines.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
FLOAT_DTYPES: dict[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `dtype` is the format's own name, `begin` counts from the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    def read_bytes(self, start: int, stop: int) -> torch.Tensor:
        """Bytes start..stop of the tensor, as uint8."""
        out = torch.empty(stop - start, dtype=torch.uint8)
        if start == stop:
            return out
        view = out.numpy().data
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.begin + start)
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise CheckpointError(
                            f"{self.path}: ends inside tensor {self.name}; it has been cut since"
                            " it was opened"
                        )
                    done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
        return out


@dataclass(frozen=True, eq=False)
class FileTensor(LazyTensor):
    """A stored tensor of a float type that needs no decoding."""

    stored: StoredTensor

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        dtype = TORCH_DTYPES[self.dtype]
        raw = self.stored.read_bytes(start * dtype.itemsize, stop * dtype.itemsize)
        return raw.view(dtype)


@dataclass(frozen=True)
class SafetensorsFile:
    path: Path
    size: int
    header_sha256: str
    tensors: dict[str, StoredTensor]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Reads and checks the header; no tensor is read."""
    size = regular_file_size(path)
    header = _read_header(path, size)
    entries = parse_object(header, f"{path}: header")
    _check_metadata(path, entries.pop("__metadata__", None))
    data_begin = 8 + len(header)
    tensors = {name: _stored(path, name, entry, data_begin) for name, entry in entries.items()}
    _check_tiling(path, list(tensors.values()), data_begin, size)
    return SafetensorsFile(path, size, hashlib.sha256(header).hexdigest(), tensors)


def _read_header(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            if prefix == b"version " or len(prefix) < 8:
                # A Git LFS pointer begins with "version https://git-lfs..."
                what = "a Git LFS pointer: fetch the file itself" if prefix[:1] == b"v" else "empty"
                raise CheckpointError(f"{path}: not a safetensors file but {what}")
            length = int.from_bytes(prefix, "little")
            if not 2 <= length <= HEADER_LIMIT_BYTES:
                raise CheckpointError(
                    f"{path}: not a safetensors file: it claims a header of {length} bytes"
                )
            if 8 + length > size:
                raise CheckpointError(
                    f"{path}: truncated: {size} bytes, its header alone ends at {8 + length};"
                    " download it again"
                )
            return file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _check_metadata(path: Path, metadata: Json) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: header: __metadata__ must map names to strings")


def _stored(path: Path, name: str, entry: Json, data_begin: int) -> StoredTensor:
    where = f"{path}: tensor {one_line(name)}"
    if not name.isprintable() or not name or len(name) > 200:
        raise CheckpointError(f"{where}: the name must be 1 to 200 printable characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: its entry must hold dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {one_line(str(dtype))}")
    shape = _naturals(entry["shape"])
    if shape is None or len(shape) > DIMENSION_LIMIT:
        raise CheckpointError(
            f"{where}: its shape must be at most {DIMENSION_LIMIT} non-negative integers"
        )
    offsets = _naturals(entry["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: its data_offsets must be a begin and an end")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} takes {-(-bits // 8)} bytes, its offsets"
            f" {begin}..{end} give {end - begin}"
        )
    return StoredTensor(path, name, dtype, shape, data_begin + begin, end - begin)


def _naturals(value: Json) -> tuple[int, ...] | None:
    """Non-negative integers below 2^63, or None; JSON's true and 1.0 are neither."""
    if not isinstance(value, list):
        return None
    found = tuple(item for item in value if type(item) is int and 0 <= item < 1 << 63)
    return found if len(found) == len(value) else None


def _check_tiling(path: Path, tensors: list[StoredTensor], data_begin: int, size: int) -> None:
    """The tensors must cover the data exactly: no hole, no overlap, nothing after the last."""
    position = data_begin
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.nbytes)):
        if tensor.begin != position:
            what = "overlaps another tensor" if tensor.begin < position else "follows a hole"
            raise CheckpointError(f"{path}: tensor {tensor.name}: its data {what}")
        position += tensor.nbytes
        if position > size:
            raise CheckpointError(
                f"{path}: truncated: {size} bytes, tensor {tensor.name} ends at {position};"
                " download it again"
            )
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes follow the last tensor")
