"""What a whole segment shares is chosen on a sample of its rows: zero points or none, codes at half
steps or not, and how fine the outliers are. Then rows get their scales and outliers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import MOST_SHIFT, Outliers, QuantizedRows
from edgewright.export.quantize.outliers import gains, round_weights, values_of, worst
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.scales import Grid, fit

_SAMPLE_WEIGHTS = 1 << 17
_BAND_WEIGHTS = 1 << 20
_ROUNDS = 2


def checked(weight: Tensor, hessian: Tensor | None) -> Tensor:
    """The weight as float32, or an error that says what is wrong with it or with its hessian."""
    if weight.ndim != 2 or not weight.numel():
        raise ExportError(f"a matrix is quantised, not a weight of shape {tuple(weight.shape)}")
    weight = weight.detach().float().contiguous()
    wrong = ~torch.isfinite(weight)
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise ExportError(
            f"the weight holds {float(weight[row, column])} in row {row}, column {column}, and"
            f" {int(wrong.sum())} such values in all: nothing can be quantised that is not finite"
        )
    if hessian is not None:
        columns = weight.shape[1]
        if tuple(hessian.shape) not in ((columns,), (columns, columns)):
            raise ExportError(
                f"a hessian of shape {tuple(hessian.shape)} is not of {columns} columns"
            )
        if not torch.isfinite(hessian).all():
            raise ExportError("the hessian holds values that are not finite: the model's"
                              " activations overflow on the calibration text")  # fmt: skip
    return weight


def importance_of(hessian: Tensor | None, columns: int, damping: float) -> Tensor:
    """[K], 1 on average: what a squared error in each column counts."""
    if hessian is None:
        return torch.ones(columns)
    diagonal = (hessian if hessian.ndim == 1 else hessian.diagonal()).double().clamp(min=0)
    mean = float(diagonal.numpy().mean())
    if not mean > 0:
        return torch.ones(columns)
    return ((diagonal / mean + damping) / (1 + damping)).float()


def bands(rows: int, columns: int, weights: int = _BAND_WEIGHTS) -> Iterator[slice]:
    """Ranges of rows, each a multiple of 16 but for the last."""
    height = max(16, weights // max(1, columns) // 16 * 16)
    for top in range(0, rows, height):
        yield slice(top, min(top + height, rows))


def scale_rows(weight: Tensor, importance: Tensor, recipe: Recipe) -> tuple[Grid, Tensor | None]:
    """The grid and the outliers (bool [N, K]) of some rows. Without its outliers a block's step is
    smaller, and then others may be its worst."""
    grid = fit(weight, importance, recipe)
    if not recipe.corrected:
        return grid, None
    for _ in range(_ROUNDS):
        outlier = worst(gains(weight, importance, grid, recipe), recipe.corrected)
        grid = fit(weight, importance, recipe, outlier)
    return grid, outlier


def settle(weight: Tensor, recipe: Recipe, hessian: Tensor | None = None) -> Recipe:
    """The recipe with every choice made. Zero points pay if what they take off the error is more
    than their bits would, spent on the codes: a bit more quarters it."""
    columns = weight.shape[1]
    rows = max(16, _SAMPLE_WEIGHTS // columns)
    if rows < weight.shape[0]:
        weight = weight[torch.linspace(0, weight.shape[0] - 1, rows).long()]
    weight = checked(weight, hessian)
    importance = importance_of(hessian, columns, recipe.damping)
    able = recipe.bits != 8 and recipe.shift != 0
    best, least = recipe, float("inf")
    tried = _choices(recipe, able)
    for choice in tried:
        if len(tried) == 1 and choice.shift is not None:
            return choice
        error, settled = _sampled(weight, importance, choice)
        if choice.zeros:
            error *= 4.0 ** (8 / recipe.block)
        if error < least:
            best, least = settled, error
    return best


def _choices(recipe: Recipe, able: bool) -> list[Recipe]:
    halves = ((False, True) if able else (False,)) if recipe.half is None else (recipe.half,)
    zeros = (False, True) if recipe.zeros is None else (recipe.zeros,)
    found = [replace(recipe, half=half, zeros=zero) for zero in zeros for half in halves]
    if recipe.corrected:
        return found
    return [choice if choice.shift is not None else replace(choice, shift=int(bool(choice.half)))
            for choice in found]  # fmt: skip


def _sampled(weight: Tensor, importance: Tensor, recipe: Recipe) -> tuple[float, Recipe]:
    """Its error on these rows, with the best shift."""
    shifts = range(int(bool(recipe.half)), MOST_SHIFT[recipe.bits] + 1)
    if recipe.shift is not None:
        shifts = range(recipe.shift, recipe.shift + 1)
    grid, outlier = scale_rows(weight, importance, replace(recipe, shift=shifts[len(shifts) // 2]))
    scale, centre = grid.by_column(weight.shape[1], recipe.block)
    found = []
    for shift in shifts:
        choice = replace(recipe, shift=shift)
        codes, fine = round_weights(weight, scale, centre, choice, outlier)
        wrong = values_of(codes, fine, scale, centre, choice) - weight
        error = float((wrong.double().square() * importance).numpy().sum())
        found.append((error, choice))
    return min(found, key=lambda pair: pair[0])


def assembled(recipe: Recipe, parts: list[tuple[Grid, Tensor, Outliers | None]]) -> QuantizedRows:
    """Bands of grids, codes (uint8) and outliers by their rows in the whole, in order."""

    def joined(tensors: list[Tensor | None], dtype: torch.dtype) -> np.ndarray | None:
        given = [tensor.to(dtype) for tensor in tensors if tensor is not None]
        return torch.cat(given).numpy() if given else None

    grids = [grid for grid, _, _ in parts]
    codes = joined([codes for _, codes, _ in parts], torch.uint8)
    lists = [outliers for _, _, outliers in parts if outliers is not None]
    assert codes is not None
    coded = recipe.scale_kind == 0
    return QuantizedRows(
        bits=recipe.bits,
        block=recipe.block,
        codes=codes,
        scale_kind=recipe.scale_kind,
        row_scale=joined([grid.row_scale for grid in grids], torch.float32),
        scale_codes=joined([grid.scale_codes for grid in grids], torch.uint8),
        block_scale=None if coded else joined([grid.scale for grid in grids], torch.float32),
        zeros=joined([grid.zeros for grid in grids], torch.uint8),
        shift=recipe.shift or 0,
        outliers=_all_of(lists) if lists else None,
        half=bool(recipe.half),
    )


def _all_of(lists: list[Outliers]) -> Outliers:
    rows = np.concatenate([outliers.rows for outliers in lists])
    columns = np.concatenate([outliers.columns for outliers in lists])
    return Outliers(rows, columns, np.concatenate([outliers.values for outliers in lists]))
