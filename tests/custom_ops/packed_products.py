"""What packed weights may be made of, x that quantises to itself, and what a product has to come
to, for the tests of the kernels that multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.custom_ops.packed_reference import quantise_rows, whole_numbers
from edgewright.custom_ops.packed_weights import QuantizedMatrix

Array = NDArray[Any]


@dataclass(frozen=True)
class MakeUp:
    """What `random_matrix` takes beside sizes and widths."""

    kind: int = 0
    zeros: bool = False
    outliers: float | None = None
    half: bool = False
    column_scale: bool = False
    column_order: bool = False
    exact: bool = False


MAKE_UPS = (
    MakeUp(),
    MakeUp(kind=1, column_scale=True),
    MakeUp(kind=2, zeros=True, column_order=True),
    MakeUp(outliers=0.01),
    MakeUp(zeros=True, outliers=0.15, half=True),
    MakeUp(kind=1, outliers=0.03, column_scale=True, column_order=True),
    MakeUp(half=True, zeros=True, column_scale=True),
)


def exact_x(rng: np.random.Generator, rows: int, matrix: QuantizedMatrix) -> Array:
    """What stored columns are multiplied with are whole numbers, and a 127 in each block: they are
    quantised to themselves. Column scales have to be powers of two."""
    stored = rng.integers(-127, 128, (rows, matrix.columns)).astype(np.float32)
    firsts = stored[:, :: matrix.block]
    firsts[:] = rng.choice([-127, 127], firsts.shape)
    if matrix.column_scale is not None:
        stored /= matrix.column_scale
    if matrix.column_order is None:
        return stored
    x = np.empty_like(stored)
    x[:, matrix.column_order] = stored
    return x


def stored_x(x: Array, matrix: QuantizedMatrix) -> Array:
    """What the columns that a matrix stores are multiplied with."""
    if matrix.column_order is not None:
        x = x[:, matrix.column_order]
    return x if matrix.column_scale is None else x * matrix.column_scale


def terms(x: Array, matrix: QuantizedMatrix) -> tuple[Array, Array]:
    """In float64: what each output is, and the sum of the magnitudes that make it up."""
    scaled = stored_x(x, matrix)
    whole, scales = (
        a.numpy().astype(np.float64) for a in quantise_rows(torch.from_numpy(scaled), matrix.block)
    )
    exact, magnitude = [], []
    for segment in matrix.segments:
        weight = whole_numbers(segment).numpy().astype(np.float64)
        weight_scales = segment.scales().astype(np.float64) * 2.0**-segment.shift
        y = np.zeros((2, len(x), segment.rows))
        for b in range(segment.blocks):
            columns = weight[:, b * matrix.block : (b + 1) * matrix.block]
            sums = whole[:, b, : columns.shape[1]] @ columns.T
            term = sums * weight_scales[:, b] * scales[:, b, None]
            y += term, np.abs(term)
        exact.append(y[0])
        magnitude.append(y[1])
    return np.concatenate(exact, 1), np.concatenate(magnitude, 1)


def bound(magnitude: Array, matrix: QuantizedMatrix) -> Array:
    """A rounding of each term's three factors and of each sum."""
    steps = matrix.segments[0].blocks + 4
    found: Array = magnitude * steps * np.finfo(np.float32).eps + np.finfo(np.float32).tiny
    return found
