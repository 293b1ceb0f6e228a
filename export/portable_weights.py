"""A quantised matrix goes in; the same values as ONNX Runtime's MatMulNBits keeps them come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import QuantizedMatrix, QuantizedRows

Integers = NDArray[np.int16]
WIDTHS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class PortableRows:
    """Rows of one width. Values are (code - zero) * scale; without zeros it is 2^(bits-1)."""

    bits: int
    block: int
    columns: int
    codes: NDArray[np.uint8]  # [N, blocks, block * bits / 8], the first column lowest
    scales: NDArray[np.float32]  # [N, blocks]
    zeros: NDArray[np.uint8] | None  # [N, ceil(blocks * bits / 8)]

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    def values(self) -> NDArray[np.float32]:
        """[N, K]"""
        blocks = self.scales.shape[1]
        codes = _widened(self.codes.reshape(self.rows, -1), self.bits).astype(np.float32)
        steps = codes.reshape(self.rows, blocks, self.block)
        if self.zeros is None:
            steps -= np.float32(1 << (self.bits - 1))
        else:
            steps -= _widened(self.zeros, self.bits)[:, :blocks, None].astype(np.float32)
        steps *= self.scales[..., None]
        return np.ascontiguousarray(steps.reshape(self.rows, -1)[:, : self.columns])


@dataclass(frozen=True, eq=False)
class _Whole:
    """Integers [N, K] and the scale of each block [N, blocks], whose product is the value."""

    values: Integers
    scales: NDArray[np.float32]


def portable_rows(
    matrix: QuantizedMatrix, as_one: bool = False, taken: Sequence[int] = WIDTHS
) -> tuple[PortableRows, ...]:
    """Of each run of segments the narrowest width of those taken that holds them exactly; a
    correction of single weights in parts of a step makes that 8. `as_one`: one width for all."""
    wholes = [_whole(rows) for rows in matrix.segments]
    widths = [_width(whole.values, matrix.block, taken) for whole in wholes]
    if as_one:
        widths = [max(widths)] * len(widths)
    found, at = [], 0
    for bits, run in groupby(widths):
        count = len(list(run))
        parts = wholes[at : at + count]
        values = np.concatenate([part.values for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        found.append(_portable(_Whole(values, scales), bits, matrix.block))
        at += count
    return tuple(found)


def _whole(rows: QuantizedRows) -> _Whole:
    """In units of the smallest step there is: (q - z) << shift, with the corrections."""
    values = rows.codes.astype(np.int16)
    if rows.zeros is None:
        values -= np.int16(1 << (rows.bits - 1))
    else:
        values -= rows.per_column(rows.zeros.astype(np.int16))
    corrected = rows.outliers is not None and len(rows.outliers) > 0
    shift = rows.shift if corrected or rows.half else 0
    values <<= shift
    if rows.half:
        values += np.int16(1 << (shift - 1))
    if rows.outliers is not None and corrected:
        places = (rows.outliers.rows, rows.outliers.columns)
        values[places] += rows.outliers.values.astype(np.int16)
    return _Whole(values, rows.scales() * np.float32(2.0**-shift))


def _width(values: Integers, block: int, taken: Sequence[int]) -> int:
    for bits in taken:
        if _zeros(values, block, bits) is not _NONE:
            return bits
    raise ExportError("a packed weight has zero points too far from its codes for MatMulNBits")


_NONE = np.empty(0, np.int16)  # no zero point will do


def _zeros(values: Integers, block: int, bits: int) -> Integers | None:
    """The zero points [N, blocks] at this width: None where the middle does for all."""
    middle, most = 1 << (bits - 1), (1 << bits) - 1
    if values.min() >= -middle and values.max() < middle:
        return None
    starts = np.arange(0, values.shape[1], block)
    least = np.minimum.reduceat(values, starts, axis=1)
    largest = np.maximum.reduceat(values, starts, axis=1)
    zeros = np.clip(-least, 0, most)
    fits = (least + zeros >= 0).all() and (largest + zeros <= most).all()
    return zeros.astype(np.int16) if fits else _NONE


def _portable(whole: _Whole, bits: int, block: int) -> PortableRows:
    rows, columns = whole.values.shape
    blocks = whole.scales.shape[1]
    zeros = _zeros(whole.values, block, bits)
    codes = np.zeros((rows, blocks * block), np.uint8)
    if zeros is None:
        codes[:, :columns] = whole.values + np.int16(1 << (bits - 1))
    else:
        codes[:, :columns] = whole.values + np.repeat(zeros, block, axis=1)[:, :columns]
    return PortableRows(
        bits,
        block,
        columns,
        _narrowed(codes, bits).reshape(rows, blocks, block * bits // 8),
        np.ascontiguousarray(whole.scales, np.float32),
        None if zeros is None else _narrowed(zeros.astype(np.uint8), bits),
    )


def _narrowed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[N, M] of one byte each → [N, ceil(M * bits / 8)], the first lowest."""
    each = 8 // bits
    padded = np.zeros((values.shape[0], -(-values.shape[1] // each) * each), np.uint8)
    padded[:, : values.shape[1]] = values
    found = np.zeros((padded.shape[0], padded.shape[1] // each), np.uint8)
    for i, part in _parts(padded, each):
        found |= part << np.uint8(i * bits)
    return found


def _widened(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse, without knowing M: [N, bytes] → [N, bytes * 8 / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (values[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    found: NDArray[np.uint8] = codes.reshape(values.shape[0], -1)
    return found


def _parts(values: NDArray[Any], each: int) -> Iterator[tuple[int, NDArray[Any]]]:
    for i in range(each):
        yield i, values[:, i::each]
