"""A matrix, what stands for it and its hessian go in; how much of its output is wrong comes out."""

from __future__ import annotations

import torch

_BAND_ROWS = 4096


def output_error(
    weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor | None
) -> float:
    """tr(D H Dᵀ) for the difference D: the squared error of the output over the samples of H."""
    total = 0.0
    for top in range(0, weight.shape[0], _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        total += _energy(weight[rows] - approximation[rows], hessian)
    return total


def relative_error(
    weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor | None
) -> float:
    """The output's squared error by the output's own square; 0 where there is no output."""
    error = output_error(weight, approximation, hessian)
    output = output_error(weight, torch.zeros_like(weight), hessian)
    return error / output if output > 0 else 0.0


def _energy(rows: torch.Tensor, hessian: torch.Tensor | None) -> float:
    rows = rows.float()
    if hessian is None:
        product = rows
    elif hessian.ndim == 1:
        product = rows * hessian.float()
    else:
        product = rows @ hessian.float()
    # Rows first, so that the sum does not depend on the number of threads.
    return float((product * rows).sum(1).double().numpy().sum())
