"""The second moments of a matrix's inputs go in; what GPTQ needs of them comes out: an order of the
columns, and the factor by which an error in one is made good in those that follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError

_PANEL = 128  # LAPACK factors a corner of this size in one thread
_MOST_ATTEMPTS = 12


@dataclass(frozen=True, eq=False)
class Factored:
    """Columns in the order in which they are rounded."""

    order: Tensor  # [K]
    damped: Tensor  # float32 [K, K], the hessian in that order, 1 on its diagonal's average
    factor: Tensor  # float32 [K, K], upper, of the inverse: damped⁻¹ = factorᵀ · factor

    def importance(self) -> Tensor:
        """[K], 1 on average, in the columns' own order: what the square of a column's error adds to
        the output's, when the columns after it have made good what they can."""
        left = self.factor.diagonal().double().square().reciprocal()
        found = torch.empty_like(left)
        found[self.order] = left / float(left.numpy().mean())
        return found.float()


def factored(hessian: Tensor, damping: float, *, act_order: bool = True) -> Factored:
    """Columns that never had an input stand alone: nothing is made good in them. A hessian of
    fewer samples than columns is singular; it is damped until it is not."""
    hessian = hessian.double()
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    mean = float(diagonal.clamp(min=0).numpy().mean())
    if not mean > 0:
        hessian, dead, mean = torch.eye(len(diagonal), dtype=torch.float64), dead & False, 1.0
    order = torch.arange(len(dead))
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    scaled = hessian[order][:, order] / mean
    scaled = (scaled + scaled.T) / 2
    gone = dead[order]
    scaled[gone] = 0
    scaled[:, gone] = 0
    for _ in range(_MOST_ATTEMPTS):
        scaled.diagonal().add_(damping)
        factor = _inverse_factor(scaled)
        if factor is not None:
            return Factored(order, scaled.float(), factor.float())
        damping *= 10
    raise ExportError("the hessian cannot be factored, however much it is damped")


def _inverse_factor(matrix: Tensor) -> Tensor | None:
    """U of matrix⁻¹ = UᵀU. Backwards, matrix = MMᵀ with M upper, so U = M⁻¹: no inverse is made."""
    lower = cholesky(matrix.flip(0, 1))
    if lower is None:
        return None
    identity = torch.eye(len(lower), dtype=lower.dtype)
    found = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1).contiguous()
    return found if torch.isfinite(found).all() else None


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower; None if the matrix is not positive definite. In panels of products, whose sums do not
    depend on the number of threads as LAPACK's own do."""
    lower = matrix.clone()
    size = len(lower)
    for left in range(0, size, _PANEL):
        right = min(left + _PANEL, size)
        corner = _corner(lower[left:right, left:right])
        if corner is None:
            return None
        lower[left:right, left:right] = corner
        if right < size:
            below = lower[right:, left:right]
            solved = torch.linalg.solve_triangular(corner, below.T, upper=False).T.contiguous()
            lower[right:, left:right] = solved
            lower[right:, right:] -= solved @ solved.T
    return lower.tril_()


def _corner(matrix: Tensor) -> Tensor | None:
    found, failed = torch.linalg.cholesky_ex(matrix)
    return None if int(failed) or not torch.isfinite(found).all() else found
