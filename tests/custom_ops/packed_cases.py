"""Quantised matrices of every make-up, drawn at random, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.custom_ops.packed_weights import (
    MOST_SHIFT,
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    to_bfloat16,
)

Array = NDArray[Any]


def random_rows(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    bits: int,
    block: int = 32,
    *,
    kind: int = 0,
    zeros: bool = False,  # of any size, as imported ones are
    outliers: float | None = None,
    shift: int | None = None,
    half: bool = False,
    exact: bool = False,
) -> QuantizedRows:
    """`outliers` is a fraction of the values. With `exact` every scale is a power of two, near
    enough to the others that float32 loses nothing of a sum."""
    blocks = -(-(-(-columns // 32) * 32) // block)
    shape = (rows, blocks)
    if exact:
        row_scale = np.exp2(rng.integers(-3, 1, rows)).astype(np.float32)
        scale_codes = np.exp2(rng.integers(0, 3, shape)).astype(np.uint8)
        block_scale = np.exp2(rng.integers(-3, 2, shape)).astype(np.float32)
    else:
        row_scale = to_bfloat16(rng.uniform(1e-5, 1e-3, rows))
        scale_codes = rng.integers(0, 256, shape, dtype=np.uint8)
        block_scale = to_bfloat16(rng.uniform(1e-3, 1e-1, shape))
        if kind == 1:
            block_scale = block_scale.astype(np.float16).astype(np.float32)
    chosen = None
    if outliers is not None and bits < 8:
        count = min(rows * columns, max(1, round(outliers * rows * columns)))
        places = rng.choice(rows * columns, count, replace=False)
        values = rng.integers(-32, 32, count).astype(np.int8)
        chosen = Outliers(places // columns, places % columns, values)
    return QuantizedRows(
        bits,
        block,
        rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8),
        kind,
        row_scale if kind == 0 else None,
        scale_codes if kind == 0 else None,
        block_scale if kind else None,
        rng.integers(0, (1 << bits) + 1, shape).clip(max=255).astype(np.uint8) if zeros else None,
        MOST_SHIFT[bits] if shift is None else shift,
        chosen,
        half and bits < 8,
    )


def random_matrix(
    rng: np.random.Generator,
    segments: Sequence[tuple[int, int]],  # (rows, bits)
    columns: int,
    block: int = 32,
    *,
    column_scale: bool = False,
    column_order: bool = False,
    exact: bool = False,
    **options: Any,
) -> QuantizedMatrix:
    rows = tuple(
        random_rows(rng, count, columns, bits, block, exact=exact, **options)
        for count, bits in segments
    )
    scale = None
    if column_scale:
        drawn = rng.uniform(0.5, 2, columns)
        scale = to_bfloat16(np.exp2(np.round(np.log2(drawn))) if exact else drawn)
    order = rng.permutation(columns) if column_order else None
    return QuantizedMatrix(rows, scale, order)
