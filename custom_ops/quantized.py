"""Codes and scales of a weight matrix go in; checked, they say what values they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_layout import (
    BFLOAT16,
    BLOCKS,
    CODED,
    FLOAT16,
    GROUP,
    MOST_SHIFT,
    SCALE_KINDS,
    WIDTHS,
    Segment,
    up_to,
)

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
LEAST_OUTLIER, MOST_OUTLIER = -32, 31


def to_bfloat16(values: NDArray[Any]) -> Float32:
    """float32 rounded to the nearest bfloat16, half to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    halfway = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    with np.errstate(over="ignore"):
        rounded = (bits + halfway) & np.uint32(0xFFFF0000)
    result: Float32 = np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))
    return result


def is_bfloat16(values: Float32) -> bool:
    """Whether each is finite and a bfloat16 already."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return bool(np.isfinite(values).all() and not (bits & np.uint32(0xFFFF)).any())


def is_float16(values: Float32) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values).all() and (values.astype(np.float16) == values).all())


def is_order(order: NDArray[Any], size: int) -> bool:
    """Whether it is a permutation of 0..size - 1."""
    return order.shape == (size,) and bool((np.sort(order) == np.arange(size)).all())


@dataclass(frozen=True, eq=False)
class Outliers:
    """What is added to single values, in steps of 2^-shift; a place occurs once."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.int8]  # -32..31

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """Rows of a matrix that are stored alike. A kind of scale has its own fields, the others are
    None: kind 0 row_scale and scale_codes, 1 (float16) and 2 (bfloat16) block_scale."""

    bits: int
    block: int
    codes: Bytes  # [N, K]
    scale_kind: int = CODED
    row_scale: Float32 | None = None  # [N], each a bfloat16
    scale_codes: Bytes | None = None  # [N, blocks]
    block_scale: Float32 | None = None  # [N, blocks]
    zeros: Bytes | None = None  # [N, blocks]
    shift: int = 0
    outliers: Outliers | None = None
    half: bool = False

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    @property
    def blocks(self) -> int:
        return -(-up_to(GROUP, self.columns) // self.block)

    @property
    def segment(self) -> Segment:
        zeros = self.zeros is not None
        return Segment(self.rows, self.bits, zeros, self.scale_kind, self.shift, self.half)

    def scales(self) -> Float32:
        """[N, blocks]"""
        if self.scale_kind != CODED:
            assert self.block_scale is not None
            return self.block_scale
        assert self.row_scale is not None and self.scale_codes is not None
        return self.row_scale[:, None] * self.scale_codes.astype(np.float32)

    def per_column(self, of_blocks: NDArray[Any]) -> NDArray[Any]:
        """[N, blocks] → [N, K]"""
        return np.repeat(of_blocks, self.block, axis=1)[:, : self.columns]

    def dequantised(self) -> Float32:
        """[N, K] of stored columns, without their scale."""
        values = self.codes.astype(np.float32)
        if self.zeros is None:
            values -= np.float32((1 << (self.bits - 1)) - self.half / 2)
        else:
            values -= self.per_column(self.zeros.astype(np.float32) - np.float32(self.half / 2))
        if self.outliers is not None:
            step = np.float32(2.0**-self.shift)
            places = (self.outliers.rows, self.outliers.columns)
            values[places] += self.outliers.values.astype(np.float32) * step
        values *= self.per_column(self.scales())
        return values

    def rows_between(self, start: int, stop: int) -> QuantizedRows:
        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[start:stop]

        outliers = self.outliers
        if outliers is not None:
            kept = (outliers.rows >= start) & (outliers.rows < stop)
            rows = outliers.rows[kept] - start
            outliers = Outliers(rows, outliers.columns[kept], outliers.values[kept])
        return QuantizedRows(
            self.bits,
            self.block,
            self.codes[start:stop],
            self.scale_kind,
            cut(self.row_scale),
            cut(self.scale_codes),
            cut(self.block_scale),
            cut(self.zeros),
            self.shift,
            outliers,
            self.half,
        )

    def check(self) -> None:
        """Raise unless every field is what the format can hold."""
        for problem in self._problems():
            raise ExportError(f"rows of {self.bits} bits cannot be packed: {problem}")

    def _problems(self) -> Iterator[str]:
        if self.bits not in WIDTHS:
            yield f"the widths are {WIDTHS}"
        if self.block not in BLOCKS:
            yield f"blocks of {self.block} columns; there are {BLOCKS}"
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2 or not self.codes.size:
            yield f"codes are {self.codes.dtype} {list(self.codes.shape)}, not uint8 [N, K]"
        if self.codes.max() >> self.bits:
            yield f"the largest code is {self.codes.max()}"
        if not 0 <= self.shift <= MOST_SHIFT[self.bits]:
            yield f"shift {self.shift} is not within 0..{MOST_SHIFT[self.bits]}"
        if self.half and not self.shift:
            yield "half steps need a shift"
        yield from self._scale_problems()
        if self.zeros is not None:
            yield from self._misfit("zeros", self.zeros, np.uint8, (self.rows, self.blocks))
        if self.outliers is not None:
            yield from self._outlier_problems(self.outliers)

    def _scale_problems(self) -> Iterator[str]:
        by_block = (self.rows, self.blocks)
        if self.scale_kind not in SCALE_KINDS:
            yield f"scale kind {self.scale_kind} is not one of {SCALE_KINDS}"
        if self.scale_kind == CODED:
            yield from self._misfit("row_scale", self.row_scale, np.float32, (self.rows,))
            yield from self._misfit("scale_codes", self.scale_codes, np.uint8, by_block)
            assert self.row_scale is not None
            if not is_bfloat16(self.row_scale):
                yield "a row scale is no finite bfloat16; use to_bfloat16"
            return
        yield from self._misfit("block_scale", self.block_scale, np.float32, by_block)
        assert self.block_scale is not None
        if self.scale_kind == FLOAT16 and not is_float16(self.block_scale):
            yield "a block scale is no finite float16"
        if self.scale_kind == BFLOAT16 and not is_bfloat16(self.block_scale):
            yield "a block scale is no finite bfloat16; use to_bfloat16"

    def _misfit(
        self, name: str, values: NDArray[Any] | None, dtype: type, shape: tuple[int, ...]
    ) -> Iterator[str]:
        if values is None:
            yield f"{name} is missing"
        elif values.dtype != dtype or values.shape != shape:
            found, wanted = list(values.shape), list(shape)
            yield f"{name} is {values.dtype} {found}, not {np.dtype(dtype)} {wanted}"

    def _outlier_problems(self, outliers: Outliers) -> Iterator[str]:
        count = len(outliers)
        if not outliers.rows.shape == outliers.columns.shape == outliers.values.shape == (count,):
            yield "outliers' rows, columns and values differ in length"
        if not count:
            return
        if self.bits == 8:
            yield "8-bit codes take no outliers"
        for name, places, size in (
            ("rows", outliers.rows, self.rows),
            ("columns", outliers.columns, self.columns),
        ):
            if places.min() < 0 or places.max() >= size:
                yield f"outliers' {name} are not within 0..{size - 1}"
        if outliers.values.min() < LEAST_OUTLIER or outliers.values.max() > MOST_OUTLIER:
            yield f"an outlier is not within {LEAST_OUTLIER}..{MOST_OUTLIER}"
        places = outliers.rows * self.columns + outliers.columns
        if len(np.unique(places)) != count:
            yield "two outliers share a place"


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """`column_order` says which of the matrix's columns each stored one is; segments and scale are
    of the stored ones."""

    segments: tuple[QuantizedRows, ...]
    column_scale: Float32 | None = None  # [K], each a bfloat16
    column_order: NDArray[np.int64] | None = None  # [K], a permutation

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def columns(self) -> int:
        return self.segments[0].columns

    @property
    def block(self) -> int:
        return self.segments[0].block

    def dequantised(self) -> Float32:
        """[N, K]"""
        values = np.concatenate([segment.dequantised() for segment in self.segments])
        if self.column_scale is not None:
            values *= self.column_scale
        if self.column_order is not None:
            values = np.take(values, np.argsort(self.column_order), axis=1)
        return values

    def check(self) -> None:
        for segment in self.segments:
            segment.check()
            if (segment.columns, segment.block) != (self.columns, self.block):
                raise ExportError(
                    f"a matrix of {self.columns} columns in blocks of {self.block} has a segment of"
                    f" {segment.columns} in blocks of {segment.block}"
                )
        scale = self.column_scale
        if scale is not None and not (scale.shape == (self.columns,) and is_bfloat16(scale)):
            raise ExportError(
                f"a column scale of shape {list(scale.shape)} for {self.columns} columns, each to"
                " be a finite bfloat16"
            )
        if self.column_order is not None and not is_order(self.column_order, self.columns):
            raise ExportError(f"a column order that is no permutation of {self.columns} columns")
