"""The weights that codes serve worst: which they are, what they become, how many may be listed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewright.custom_ops.packed_weights import ROWS_OF_STRIP, Outliers
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.scales import Grid, few_rows

LEAST_VALUE, MOST_VALUE = -32, 31
_CHUNK_COLUMNS = 64
_MOST_IN_CHUNK = 255


def round_weights(
    weight: Tensor, scale: Tensor, centre: Tensor, recipe: Recipe, outlier: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Codes and, where `outlier`, what is added to them, in steps of 2^-shift; as floats. `scale`
    and `centre` are given for every weight."""
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    unit = weight * inverse + centre
    codes = unit.round().clamp_(0, recipe.most_code)
    if outlier is None:
        return codes, None
    fine = (unit.sub_(codes) * float(1 << (recipe.shift or 0))).round_()
    return codes, fine.clamp_(LEAST_VALUE, MOST_VALUE).mul_(outlier)


def values_of(
    codes: Tensor, fine: Tensor | None, scale: Tensor, centre: Tensor, recipe: Recipe
) -> Tensor:
    """What these codes are worth."""
    steps = codes - centre
    if fine is not None:
        steps = torch.add(steps, fine, alpha=1 / (1 << (recipe.shift or 0)))
    return steps * scale


def gains(weight: Tensor, importance: Tensor, grid: Grid, recipe: Recipe) -> Tensor:
    """By how much each weight's squared error falls as an outlier, times `importance`."""
    found = torch.empty_like(weight)
    scale, centre = grid.scale, grid.centre.expand_as(grid.scale)
    for rows in few_rows(weight):
        part = Grid(scale[rows], None, None, None, centre[rows])
        found[rows] = _gains(weight[rows], importance, part, recipe)
    return found


def _gains(weight: Tensor, importance: Tensor, grid: Grid, recipe: Recipe) -> Tensor:
    scale, centre = grid.by_column(weight.shape[1], recipe.block)
    codes, fine = round_weights(weight, scale, centre, recipe, torch.ones(()))
    # By the row's largest weight, so that no square overflows on its way.
    peak = weight.abs().amax(1, keepdim=True).clamp(min=2.0**-100)
    plain = (values_of(codes, None, scale, centre, recipe) - weight) / peak
    corrected = (values_of(codes, fine, scale, centre, recipe) - weight) / peak
    return (plain.square_() - corrected.square_()) * importance * peak.square()


def worst(gain: Tensor, fraction: float) -> Tensor:
    """bool [N, K]: the `fraction` of the weights that gain most, as far as they can be listed."""
    count = min(round(fraction * gain.numel()), gain.numel())
    chosen = torch.zeros(gain.numel(), dtype=torch.bool)
    if count == 0:
        return chosen.view_as(gain)
    flat = gain.reshape(-1)
    last = flat.numel() - count
    least = torch.from_numpy(np.partition(flat.numpy(), last)[last : last + 1])
    # Of equal gains the first are taken, so that the choice does not depend on a sort's order.
    above = flat > least.clamp(min=0)
    chosen[above] = True
    missing = count - int(above.sum())
    if missing > 0 and least > 0:
        chosen[(flat == least).nonzero().squeeze(-1)[:missing]] = True
    return _listable(chosen.view_as(gain), gain)


def _listable(chosen: Tensor, gain: Tensor) -> Tensor:
    """At most 255 in 16 rows x 64 columns, which is as far as they are counted."""
    rows, columns = chosen.shape
    for top in range(0, rows, ROWS_OF_STRIP):
        strip = chosen[top : top + ROWS_OF_STRIP]
        if int(strip.sum()) <= _MOST_IN_CHUNK:
            continue
        for left in range(0, columns, _CHUNK_COLUMNS):
            cell = strip[:, left : left + _CHUNK_COLUMNS]
            if int(cell.sum()) > _MOST_IN_CHUNK:
                part = gain[top : top + ROWS_OF_STRIP, left : left + _CHUNK_COLUMNS]
                ranked = torch.where(cell, part, torch.full_like(part, -1.0)).reshape(-1)
                order = ranked.argsort(descending=True, stable=True)
                kept = torch.zeros(ranked.numel(), dtype=torch.bool)
                kept[order[:_MOST_IN_CHUNK]] = True
                cell &= kept.view_as(cell)
    return chosen


def listed(fine: NDArray[np.int8], first_row: int = 0) -> Outliers:
    """Every correction that is not 0, by its place in [N, K]."""
    rows, columns = np.nonzero(fine)
    return Outliers(
        first_row + rows.astype(np.int64), columns.astype(np.int64), fine[rows, columns]
    )
