"""Columns of weights, one after the other, become codes on a grid that is settled: by GPTQ's rule,
which makes an error good in the columns to come, and then by descent in each column alone."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import Outliers
from edgewright.export.quantize.hessian import Factored
from edgewright.export.quantize.outliers import listed, round_weights, values_of
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.scales import Grid, nearest_stored

_PANEL = 64
_SCALE_SWEEPS = 6


class Columns:
    """Some rows of a matrix on their way. Everything lies by column, in the order of rounding:
    [K, N], and what belongs to a block [blocks, N]."""

    def __init__(
        self, weight: Tensor, grid: Grid, outlier: Tensor | None, recipe: Recipe, found: Factored
    ) -> None:
        self.recipe, self.found = recipe, found
        order = found.order
        self.weight = weight[:, order].T.contiguous()
        self.outlier = None if outlier is None else outlier[:, order].T.contiguous()
        self.block = order // recipe.block
        self.take(grid)
        self.codes = torch.empty_like(self.weight)
        self.fine = None if outlier is None else torch.zeros_like(self.weight)
        self.values = torch.empty_like(self.weight)

    @cached_property
    def pull(self) -> Tensor:
        return self.found.damped @ self.weight

    def take(self, grid: Grid) -> None:
        self.grid = grid
        self.scale = grid.scale.T.contiguous()
        self.centre = grid.centre.expand_as(grid.scale).T.contiguous()

    def result(self, first_row: int = 0) -> tuple[Grid, Tensor, Outliers | None]:
        """The grid, codes (uint8 [N, K] in their own order) and outliers."""
        back = torch.argsort(self.found.order, stable=True)
        own = None
        if self.fine is not None:
            own = listed(self.fine.to(torch.int8)[back].T.numpy(), first_row)
        return self.grid, self.codes.to(torch.uint8)[back].T.contiguous(), own

    def compensate(self) -> None:
        """GPTQ."""
        left_over = self.weight.clone()
        wrong = torch.empty_like(left_over[:_PANEL])
        factor, size = self.found.factor, len(left_over)
        for left in range(0, size, _PANEL):
            right = min(left + _PANEL, size)
            for i in range(left, right):
                self._round(i, left_over[i])
                wrong[i - left] = (left_over[i] - self.values[i]) / factor[i, i]
                left_over[i + 1 : right].addr_(factor[i, i + 1 : right], wrong[i - left], alpha=-1)
            made_good = factor[left:right, right:].T
            left_over[right:].addmm_(made_good, wrong[: right - left], alpha=-1)

    def descend(self) -> None:
        """Each column once more, as the errors of all the others now want it."""
        hessian, size = self.found.damped, len(self.weight)
        slope = self.pull - hessian @ self.values
        for left in range(0, size, _PANEL):
            right = min(left + _PANEL, size)
            before = self.values[left:right].clone()
            for i in range(left, right):
                old = self.values[i].clone()
                self._round(i, old + slope[i] / hessian[i, i])
                slope[i + 1 : right].addr_(hessian[i + 1 : right, i], old.sub_(self.values[i]))
            slope[right:].addmm_(hessian[right:, left:right], before.sub_(self.values[left:right]))

    def refit(self) -> None:
        """With the codes as they are, the scales of a row that fit it best by the whole hessian: by
        descent, first freely and then among those that can be stored."""
        power, cross = self._scale_system()
        scale = self.scale.clone()
        free = scale.clone()
        for _ in range(_SCALE_SWEEPS):
            for b in range(len(free)):
                free[b] = _least(power, cross, free, b)
        grid = nearest_stored(self.grid, free.T.contiguous(), self.recipe)
        stored = grid.scale.T.contiguous()
        better = _loss(power, cross, stored) < _loss(power, cross, scale)
        self.take(self.grid.mixed(grid, better))
        self._revalue()

    def _round(self, i: int, wanted: Tensor) -> None:
        b = self.block[i]
        outlier = None if self.outlier is None else self.outlier[i]
        codes, fine = round_weights(wanted, self.scale[b], self.centre[b], self.recipe, outlier)
        self.values[i] = values_of(codes, fine, self.scale[b], self.centre[b], self.recipe)
        self.codes[i] = codes
        if self.fine is not None and fine is not None:
            self.fine[i] = fine

    def _steps(self) -> Tensor:
        one = torch.ones(())
        return values_of(self.codes, self.fine, one, self.centre[self.block], self.recipe)

    def _revalue(self) -> None:
        self.values = self._steps() * self.scale[self.block]

    def _scale_system(self) -> tuple[Tensor, Tensor]:
        """A [blocks, blocks, N] and b [blocks, N] of the error sᵀAs - 2sᵀb in a row's scales s."""
        steps, hessian = self._steps(), self.found.damped
        count, rows = self.scale.shape
        power = torch.empty((count, count, rows))
        for b in range(count):
            mine = (self.block == b).nonzero().squeeze(-1)
            product = (hessian[:, mine] @ steps[mine]).mul_(steps)
            power[b] = torch.zeros((count, rows)).index_add_(0, self.block, product)
        product = self.pull * steps
        cross = torch.zeros((count, rows)).index_add_(0, self.block, product)
        return power, cross


def _least(power: Tensor, cross: Tensor, scale: Tensor, b: int) -> Tensor:
    """The scale of block b that is best with the others as they are."""
    others = (power[b] * scale).sum(0) - power[b, b] * scale[b]
    live = power[b, b] > 0
    found = (cross[b] - others) / torch.where(live, power[b, b], torch.ones_like(others))
    return torch.where(live & (found > 0), found, scale[b])


def _loss(power: Tensor, cross: Tensor, scale: Tensor) -> Tensor:
    """[N]"""
    return ((power * scale).sum(1) * scale - 2 * cross * scale).sum(0)
