"""A group's weights, its rows' widths and its hessians go in; its quantised stack comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import (
    ROWS_OF_STRIP,
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
)
from edgewright.export.quantize import awq, gptq, round_to_nearest
from edgewright.export.quantize.allocate import Share
from edgewright.export.quantize.groups import rows_of
from edgewright.export.quantize.make_up import settle
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.prices import recipe_of
from edgewright.export.quantize.recipe import Recipe
from edgewright.model.loading import LazyModel

# Rows at a time without a hessian, so that a table of any size costs little memory.
_BAND_VALUES = 16 << 20


def quantise_group(
    model: LazyModel,
    group: WeightGroup,
    shares: Sequence[Share],
    block: int,
    hessian: Tensor | None,  # [K, K] or [E, K, K]
    *,
    compensated: bool,  # GPTQ, not only the nearest code
    scaled: bool,  # with AWQ's column scales, where they help
) -> tuple[QuantizedMatrix, ...]:
    stack, _, columns = group.shape
    by_matrix = None if hessian is None else hessian.reshape(stack, columns, columns)
    settled: dict[int, Recipe] = {}
    found: list[QuantizedMatrix] = []
    try:
        for index in range(stack):
            own = None if by_matrix is None else by_matrix[index]
            found.append(
                _matrix(model, group, index, shares, block, own, settled, compensated, scaled)
            )
    except ExportError as error:
        raise ExportError(f"{', '.join(group.names)}: {error}") from None
    return tuple(found)


def _matrix(
    model: LazyModel,
    group: WeightGroup,
    index: int,
    shares: Sequence[Share],
    block: int,
    hessian: Tensor | None,
    settled: dict[int, Recipe],
    compensated: bool,
    scaled: bool,
) -> QuantizedMatrix:
    column_scale: Tensor | None = None
    if scaled and hessian is not None:
        whole = rows_of(model, group, index, 0, group.shape[1])
        widest = max(shares, key=lambda share: share.rows)
        column_scale = awq.column_scale(
            whole, recipe_of(widest.choice, block), hessian, compensated=compensated
        )
        if column_scale is not None:
            hessian = hessian * column_scale * column_scale[:, None]
    segments: list[QuantizedRows] = []
    start = 0
    for at, share in enumerate(shares):
        pieces: list[QuantizedRows] = []
        for low, high in _bands(start, start + share.rows, group.shape[2], hessian is None):
            weight = rows_of(model, group, index, low, high)
            if column_scale is not None:
                weight = weight / column_scale
            if at not in settled:
                settled[at] = settle(weight, recipe_of(share.choice, block), hessian)
            if compensated and hessian is not None:
                piece = gptq.quantise_rows(weight, settled[at], hessian)
            else:
                piece = round_to_nearest.quantise_rows(weight, settled[at], hessian)
            pieces.append(piece)
        segments.append(pieces[0] if len(pieces) == 1 else _stacked(pieces))
        start += share.rows
    scale = None if column_scale is None else column_scale.numpy()
    return QuantizedMatrix(tuple(segments), scale)


def _bands(start: int, stop: int, columns: int, banded: bool) -> Iterator[tuple[int, int]]:
    step = stop - start
    if banded:
        step = min(step, max(1, _BAND_VALUES // columns // ROWS_OF_STRIP) * ROWS_OF_STRIP)
    return ((low, min(low + step, stop)) for low in range(start, stop, step))


def _stacked(pieces: Sequence[QuantizedRows]) -> QuantizedRows:
    """Pieces of one make-up, one below the other."""

    def joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
        held = [part for part in parts if part is not None]
        return np.concatenate(held) if held else None

    codes = joined([piece.codes for piece in pieces])
    assert codes is not None
    starts = [0, *accumulate(piece.rows for piece in pieces)]
    outliers = [
        Outliers(found.rows + start, found.columns, found.values)
        for piece, start in zip(pieces, starts, strict=False)
        if (found := piece.outliers) is not None
    ]
    return replace(
        pieces[0],
        codes=codes,
        row_scale=joined([piece.row_scale for piece in pieces]),
        scale_codes=joined([piece.scale_codes for piece in pieces]),
        block_scale=joined([piece.block_scale for piece in pieces]),
        zeros=joined([piece.zeros for piece in pieces]),
        outliers=Outliers(
            np.concatenate([each.rows for each in outliers]),
            np.concatenate([each.columns for each in outliers]),
            np.concatenate([each.values for each in outliers]),
        )
        if outliers
        else None,
    )
