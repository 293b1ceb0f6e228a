"""Tensors that are read when asked: a name, shape and dtype in, row-major bytes out in pieces.

A decoder's parameter is an expression over the checkpoint's tensors. Everything rests on one
primitive, `read_flat`, a range of the flattened tensor, so expressions nest freely and a piece
costs about its own size in memory, however large the tensor is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from edgewright.artifacts.errors import CheckpointError

Dtype = Literal["float32", "float16", "bfloat16"]
TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PIECE_BYTES = 4 << 20
# What a gathering expression reads of its source at a time.
_BAND_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class LazyTensor(ABC):
    """What a reader may know before reading. `name` is what errors and warnings call it."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype

    @abstractmethod
    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        """Elements start..stop of the row-major tensor, one-dimensional, of `dtype`."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * TORCH_DTYPES[self.dtype].itemsize

    def read(self) -> torch.Tensor:
        return self.read_flat(0, self.numel).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Slices start..stop of the first dimension."""
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise CheckpointError(
                f"tensor {self.name}: rows {start}..{stop} asked for, its shape is {self.shape}"
            )
        inner = math.prod(self.shape[1:])
        flat = self.read_flat(start * inner, stop * inner)
        return flat.reshape(stop - start, *self.shape[1:])

    def pieces(self, limit_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
        """All bytes in row-major order; a piece ends with a row of the last dimension if it can."""
        step = max(1, limit_bytes // TORCH_DTYPES[self.dtype].itemsize)
        row = self.shape[-1] if self.shape else 1
        if 0 < row <= step:
            step -= step % row
        for start in range(0, self.numel, step):
            yield raw_bytes(self.read_flat(start, min(start + step, self.numel)))


def raw_bytes(flat: torch.Tensor) -> memoryview:
    """A tensor's bytes, copied only if they do not lie in order already."""
    array: npt.NDArray[np.uint8] = flat.contiguous().view(torch.uint8).numpy()
    return array.data


def rows(source: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Slices start..stop of the first dimension, e.g. the queries of a fused qkv."""
    if not source.shape or not 0 <= start <= stop <= source.shape[0]:
        raise CheckpointError(
            f"tensor {source.name}: rows {start}..{stop} are needed, its shape is {source.shape}"
        )
    inner = math.prod(source.shape[1:])
    shape = (stop - start, *source.shape[1:])
    return _Slice(source.name, shape, source.dtype, source, start * inner)


def strided_rows(source: LazyTensor, offset: int, step: int, dim: int) -> LazyTensor:
    """Indices offset, offset + step, ... of one dimension, e.g. interleaved gate and up rows."""
    axis = dim + len(source.shape) if dim < 0 else dim
    if not 0 <= axis < len(source.shape) or source.shape[axis] % step or not 0 <= offset < step:
        raise CheckpointError(
            f"tensor {source.name}: dimension {dim} of shape {source.shape} does not hold"
            f" {step} interleaved parts"
        )
    shape = (*source.shape[:axis], source.shape[axis] // step, *source.shape[axis + 1 :])
    inner = math.prod(shape[axis + 1 :])
    return _Strided(source.name, shape, source.dtype, source, offset, step, inner)


def concat(parts: Sequence[LazyTensor]) -> LazyTensor:
    """One after the other along the first dimension."""
    trailing = {part.shape[1:] for part in parts}
    if len(trailing) != 1 or any(not part.shape for part in parts):
        raise CheckpointError(f"tensors to concatenate disagree: {_names_and_shapes(parts)}")
    return _join(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))


def stack(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Equal shapes along a new first dimension, e.g. one matrix per expert."""
    if len({part.shape for part in parts}) != 1:
        raise CheckpointError(f"tensors to stack disagree: {_names_and_shapes(parts)}")
    return _join(parts, (len(parts), *parts[0].shape))


def transpose_last_two(source: LazyTensor) -> LazyTensor:
    """[..., rows, cols] to [..., cols, rows], one matrix at a time."""
    if len(source.shape) < 2:
        raise CheckpointError(
            f"tensor {source.name}: shape {source.shape} has no two dimensions to transpose"
        )
    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return _Transposed(source.name, shape, source.dtype, source)


def reshape(source: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    if math.prod(shape) != source.numel:
        raise CheckpointError(
            f"tensor {source.name}: shape {source.shape} cannot be read as {shape}"
        )
    return _Slice(source.name, shape, source.dtype, source, 0)


def widen(source: LazyTensor) -> LazyTensor:
    """The same values as float32."""
    if source.dtype == "float32":
        return source
    return _Widened(source.name, source.shape, "float32", source)


def plus_one(source: LazyTensor) -> LazyTensor:
    """float32(values) + 1: Gemma's norms scale by one plus the weight."""
    return mapped(source, lambda values: values + 1.0)


def negative_exp(source: LazyTensor) -> LazyTensor:
    """-exp(float32(values)): state-space models store the logarithm of how fast a state decays."""
    return mapped(source, lambda values: -values.exp())


def mapped(source: LazyTensor, function: Callable[[torch.Tensor], torch.Tensor]) -> LazyTensor:
    """float32(values) through a function of each value by itself."""
    return _Mapped(source.name, source.shape, "float32", source, function)


def constant(values: torch.Tensor, name: str = "constant") -> LazyTensor:
    """A tensor already in memory."""
    for dtype, torch_dtype in TORCH_DTYPES.items():
        if values.dtype == torch_dtype:
            return _Constant(name, tuple(values.shape), dtype, values.contiguous())
    raise CheckpointError(f"tensor {name}: dtype {values.dtype} is not one of {[*TORCH_DTYPES]}")


def parts_of(tensor: LazyTensor) -> list[tuple[LazyTensor, int, int]]:
    """(source, first row, rows) of each matrix that lies whole-rowed in the tensor, in order; a
    tensor that is no slice, join or stack of others is its own one part."""
    if not isinstance(tensor, _Slice | _Joined) or len(tensor.shape) < 2:
        return [(tensor, 0, tensor.shape[0] if tensor.shape else 1)]
    if isinstance(tensor, _Joined):
        return [found for part in tensor.parts for found in parts_of(part)]
    columns, wanted = tensor.shape[-1], tensor.numel
    if tensor.source.shape[-1:] != (columns,) or not columns or tensor.offset % columns:
        return [(tensor, 0, tensor.shape[0])]
    # The rows that the slice takes of each part of its source.
    found, base, low = [], 0, tensor.offset // columns
    high = low + wanted // columns
    for source, first, rows in parts_of(tensor.source):
        begin, end = max(low - base, 0), min(high - base, rows)
        if begin < end:
            found.append((source, first + begin, end - begin))
        base += rows
    return found


def _names_and_shapes(parts: Sequence[LazyTensor]) -> str:
    return ", ".join(f"{part.name} {part.shape}" for part in parts) or "there are none"


def _join(parts: Sequence[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    # Parts of a partly quantised checkpoint may differ in dtype; float32 holds all of them exactly.
    if len({part.dtype for part in parts}) > 1:
        parts = [widen(part) for part in parts]
    more = f" (and {len(parts) - 1} more)" if len(parts) > 1 else ""
    return _Joined(parts[0].name + more, shape, parts[0].dtype, tuple(parts))


@dataclass(frozen=True, eq=False)
class _Slice(LazyTensor):
    source: LazyTensor
    offset: int

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self.source.read_flat(self.offset + start, self.offset + stop)


@dataclass(frozen=True, eq=False)
class _Strided(LazyTensor):
    source: LazyTensor
    offset: int
    step: int
    inner: int

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        if start == stop:
            return self.source.read_flat(0, 0)
        first, last = start // self.inner, -(-stop // self.inner)
        out = torch.empty((last - first, self.inner), dtype=TORCH_DTYPES[self.dtype])
        band = max(1, _BAND_BYTES // (self.step * self.inner * out.element_size()))
        for top in range(first, last, band):
            end = min(top + band, last)
            out[top - first : end - first] = self._rows(top, end)
        return out.reshape(-1)[start - first * self.inner : stop - first * self.inner]

    def _rows(self, first: int, last: int) -> torch.Tensor:
        # `step` divides the dimension, so row r is row `offset` of the r-th group of `step` rows,
        # whatever outer index it belongs to.
        begin = (first * self.step + self.offset) * self.inner
        end = ((last - 1) * self.step + self.offset + 1) * self.inner
        return self.source.read_flat(begin, end).reshape(-1, self.inner)[:: self.step]


@dataclass(frozen=True, eq=False)
class _Joined(LazyTensor):
    parts: tuple[LazyTensor, ...]

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        found: list[torch.Tensor] = []
        base = 0
        for part in self.parts:
            low, high = max(start - base, 0), min(stop - base, part.numel)
            if low < high:
                found.append(part.read_flat(low, high))
            base += part.numel
        if not found:
            return self.parts[0].read_flat(0, 0)
        return found[0] if len(found) == 1 else torch.cat(found)

    def pieces(self, limit_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
        for part in self.parts:
            yield from part.pieces(limit_bytes)


@dataclass(frozen=True, eq=False)
class _Transposed(LazyTensor):
    source: LazyTensor

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        tall, wide = self.source.shape[-2:]  # read as [wide, tall]
        if start == stop:
            return self.source.read_flat(0, 0)
        first, last = start // tall, -(-stop // tall)
        slabs: list[torch.Tensor] = []
        row = first
        while row < last:
            matrix, column = divmod(row, wide)
            count = min(wide - column, last - row)
            slabs.append(self._columns(matrix, column, column + count).reshape(-1))
            row += count
        flat = slabs[0] if len(slabs) == 1 else torch.cat(slabs)
        return flat[start - first * tall : stop - first * tall]

    def _columns(self, matrix: int, left: int, right: int) -> torch.Tensor:
        """[right - left, tall]: a matrix's columns, gathered from bands of its rows."""
        tall, wide = self.source.shape[-2:]
        out = torch.empty((right - left, tall), dtype=TORCH_DTYPES[self.dtype])
        band = max(1, _BAND_BYTES // (wide * out.element_size()))
        for top in range(0, tall, band):
            end = min(top + band, tall)
            begin = matrix * tall * wide
            flat = self.source.read_flat(begin + top * wide, begin + end * wide)
            out[:, top:end] = flat.reshape(end - top, wide)[:, left:right].T
        return out


@dataclass(frozen=True, eq=False)
class _Widened(LazyTensor):
    source: LazyTensor

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self.source.read_flat(start, stop).float()


@dataclass(frozen=True, eq=False)
class _Mapped(LazyTensor):
    source: LazyTensor
    function: Callable[[torch.Tensor], torch.Tensor]  # of each float32 value by itself

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self.function(self.source.read_flat(start, stop).float())


@dataclass(frozen=True, eq=False)
class _Constant(LazyTensor):
    values: torch.Tensor

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        return self.values.reshape(-1)[start:stop]
