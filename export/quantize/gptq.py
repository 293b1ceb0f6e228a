"""A matrix and its inputs' hessian go in, its codes come out: columns are rounded one by one, and
what one gets wrong is made good in those that follow (Frantar et al., 2022)."""

from __future__ import annotations

from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedRows
from edgewright.export.quantize.columns import Columns
from edgewright.export.quantize.hessian import factored
from edgewright.export.quantize.make_up import (
    assembled,
    bands,
    checked,
    scale_rows,
    settle,
)
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.scales import whole_range

_BAND_WEIGHTS = 1 << 23
_ROUNDS = 3


def quantise_rows(
    weight: Tensor, recipe: Recipe, hessian: Tensor, *, refine: bool = True
) -> QuantizedRows:
    """`hessian` [K, K]: the sum or mean of x xᵀ over the inputs x, undamped. To refine is to fit
    the scales to the codes and the codes to the scales again, by the whole hessian."""
    recipe = settle(weight, recipe, hessian)
    found = factored(hessian, recipe.damping)
    importance = found.importance()
    parts = []
    for rows in bands(weight.shape[0], weight.shape[1], _BAND_WEIGHTS):
        band = checked(weight[rows], hessian)
        grid, outlier = scale_rows(band, importance, recipe)
        columns = Columns(band, grid, outlier, recipe, found)
        columns.compensate()
        for _ in range(_ROUNDS if refine else 0):
            columns.refit()
            columns.descend()
        parts.append(columns.result(rows.start))
    return assembled(recipe, parts)


def plain(weight: Tensor, bits: int, hessian: Tensor, block: int = 128) -> QuantizedRows:
    """What is usually called GPTQ, to compare with: a float16 scale and a zero point for every
    block, from its smallest to its largest weight; no outliers, nothing after."""
    recipe = Recipe(bits, block, outliers=0, zeros=True, half=False, scale_kind=1, shift=0)
    weight = checked(weight, hessian)
    found = factored(hessian, recipe.damping)
    columns = Columns(weight, whole_range(weight, recipe), None, recipe, found)
    columns.compensate()
    return assembled(recipe, [columns.result()])
