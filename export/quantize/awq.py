"""Matrices that share their inputs and the inputs' hessian go in; a scale of each column comes out
that makes the columns with the largest inputs finer (Lin et al., 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgewright.export.quantize.hessian import factored
from edgewright.export.quantize.make_up import checked, importance_of, scale_rows, settle
from edgewright.export.quantize.outliers import round_weights, values_of
from edgewright.export.quantize.output_error import output_error
from edgewright.export.quantize.recipe import Recipe

_SAMPLE_WEIGHTS = 1 << 17
# Powers of a column's inputs, and of its weights, that are tried.
_OF_INPUTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
_OF_WEIGHTS = (0.0, 0.3, 0.6)
_MOST_RATIO = 64.0
_LEAST_GAIN = 0.01


def column_scale(
    weight: Tensor, recipe: Recipe, hessian: Tensor, *, compensated: bool = False
) -> Tensor | None:
    """[K] float32, each a bfloat16; None if it does not pay. weight / scale is what is to be
    quantised then, for inputs times scale: for the hessian times scale scaleᵀ.

    The error is that of rounding to nearest; `compensated`, what GPTQ would leave of it.
    """
    rows = max(16, _SAMPLE_WEIGHTS // weight.shape[1])
    count = weight.shape[0]
    if rows < count:
        weight = weight[torch.linspace(0, count - 1, rows).long()]
    weight = checked(weight, hessian)
    recipe = replace(settle(weight, recipe, hessian), zeros=recipe.zeros)
    recipe = replace(recipe, zeros=bool(recipe.zeros))
    judge = factored(hessian, recipe.damping).importance() if compensated else hessian
    inputs = importance_of(hessian, weight.shape[1], 1e-4).sqrt()
    weights = weight.abs().double().mean(0).float()
    weights = weights.clamp(min=float(weights.max()) * 1e-4 + 1e-30)
    best, least = None, _error(weight, None, recipe, hessian, judge) * (1 - _LEAST_GAIN)
    for of_weights in _OF_WEIGHTS:
        for of_inputs in _OF_INPUTS:
            if of_inputs or of_weights:
                scale = _normal(inputs**-of_inputs * weights**of_weights)
                error = _error(weight, scale, recipe, hessian, judge) * 4.0 ** (16 / count)
                if error < least:
                    best, least = scale, error
    return best


def _normal(scale: Tensor) -> Tensor:
    """1 in the middle of its logarithms, and not too uneven."""
    logs = scale.double().log()
    scale = (logs - float(logs.numpy().mean())).exp().float()
    return scale.clamp(1 / _MOST_RATIO, _MOST_RATIO).bfloat16().float()


def _error(
    weight: Tensor, scale: Tensor | None, recipe: Recipe, hessian: Tensor, judge: Tensor
) -> float:
    even = torch.ones(weight.shape[1]) if scale is None else scale
    scaled = weight / even
    importance = (
        importance_of(hessian, weight.shape[1], recipe.damping) if judge.ndim > 1 else judge
    )
    grid, outlier = scale_rows(scaled, importance * even.square(), recipe)
    step, centre = grid.by_column(weight.shape[1], recipe.block)
    codes, fine = round_weights(scaled, step, centre, recipe, outlier)
    return output_error(weight, values_of(codes, fine, step, centre, recipe) * even, judge)
