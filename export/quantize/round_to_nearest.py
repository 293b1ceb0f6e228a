"""A matrix goes in, its codes come out: each weight the nearest value of its block's grid."""

from __future__ import annotations

import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedRows
from edgewright.export.quantize.make_up import (
    assembled,
    bands,
    checked,
    importance_of,
    scale_rows,
    settle,
)
from edgewright.export.quantize.outliers import listed, round_weights
from edgewright.export.quantize.recipe import Recipe


def quantise_rows(weight: Tensor, recipe: Recipe, hessian: Tensor | None = None) -> QuantizedRows:
    """`hessian`: [K, K], of which the diagonal weighs the errors, or that diagonal [K]."""
    recipe = settle(weight, recipe, hessian)
    importance = importance_of(hessian, weight.shape[1], recipe.damping)
    parts = []
    for rows in bands(weight.shape[0], weight.shape[1]):
        band = checked(weight[rows], hessian)
        grid, outlier = scale_rows(band, importance, recipe)
        scale, centre = grid.by_column(band.shape[1], recipe.block)
        codes, fine = round_weights(band, scale, centre, recipe, outlier)
        own = None if fine is None else listed(fine.to(torch.int8).numpy(), rows.start)
        parts.append((grid, codes.to(torch.uint8), own))
    return assembled(recipe, parts)
