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
    exact: bool = False


MAKE_UPS = (
    MakeUp(),
    MakeUp(kind=1, column_scale=True),
    MakeUp(kind=2, zeros=True),
    MakeUp(outliers=0.01),
    MakeUp(zeros=True, outliers=0.15, half=True),
    MakeUp(kind=1, outliers=0.03, column_scale=True),
    MakeUp(half=True, zeros=True, column_scale=True),
)


def exact_x(rng: np.random.Generator, rows: int, columns: int, block: int) -> Array:
    """Whole numbers whose blocks each have a 127: what they are quantised to is themselves."""
    x = rng.integers(-127, 128, (rows, columns)).astype(np.float32)
    x[:, ::block] = rng.choice([-127, 127], (rows, -(-columns // block)))
    return x


def terms(x: Array, matrix: QuantizedMatrix) -> tuple[Array, Array]:
    """In float64: what each output is, and the sum of the magnitudes that make it up."""
    scaled = x if matrix.column_scale is None else x * matrix.column_scale
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
