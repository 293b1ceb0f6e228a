"""Quantised rows and the weights they stand for go in; a matrix with gradients comes out, whose
codes, corrections and scales can be moved, and then frozen into quantised rows again.

Each code is a rounded real number. Gradients pass the rounding as if it were not there, so that
small moves add up until a code changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import (
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    to_bfloat16,
)

# A number begins where its weight lies between two codes, but well within what rounds to its code:
# GPTQ leaves many at the edge, where the first step would throw them over, right or wrong.
_WITHIN = 0.3
_LARGEST_CODE = 255


class TunedRows:
    """One segment. `state`: what is moved, by name."""

    def __init__(self, rows: QuantizedRows, weight: Tensor) -> None:
        """`weight` [N, K]: the exact values, with the column scale taken out."""
        self._rows = rows
        centre = np.full_like(rows.scales(), 1 << (rows.bits - 1))
        if rows.zeros is not None:
            centre = rows.zeros.astype(np.float32)
        self._centre = torch.from_numpy(centre - np.float32(rows.half / 2))
        scales = torch.from_numpy(rows.scales().copy())
        codes = torch.from_numpy(rows.codes.astype(np.float32))
        per_column = self._spread(scales)
        place = torch.where(per_column > 0, weight / per_column, 0.0) + self._spread(self._centre)
        place = place.nan_to_num(0.0, 0.0, 0.0)
        self._places: tuple[Tensor, Tensor] | None = None
        self.state: dict[str, Tensor] = {}
        if rows.outliers is not None and len(rows.outliers):
            at = (torch.from_numpy(rows.outliers.rows), torch.from_numpy(rows.outliers.columns))
            values = torch.from_numpy(rows.outliers.values.astype(np.float32))
            exact = (place[at] - codes[at]) * 2.0**rows.shift
            self._places = at
            self.state["corrections"] = exact.clamp(values - _WITHIN, values + _WITHIN)
        self.state["codes"] = torch.maximum(
            torch.minimum(place, codes + _WITHIN), codes - _WITHIN
        ).clamp_(0, (1 << rows.bits) - 1)
        self.state["scales"] = torch.ones_like(scales)  # times what they were
        self._scales = scales

    def value(self) -> Tensor:
        """[N, K] float32, differentiable in the state."""
        bits, shift = self._rows.bits, self._rows.shift
        steps = _rounded(self.state["codes"], 0, (1 << bits) - 1) - self._spread(self._centre)
        if self._places is not None:
            corrections = _rounded(self.state["corrections"], -32, 31) * 2.0**-shift
            steps = steps.index_put(self._places, corrections, accumulate=True)
        return steps * self._spread(self._coded_scales())

    def frozen(self) -> QuantizedRows:
        codes = self.state["codes"].detach().round().clamp(0, (1 << self._rows.bits) - 1)
        outliers = self._rows.outliers
        if self._places is not None:
            assert outliers is not None
            values = self.state["corrections"].detach().round().clamp(-32, 31)
            outliers = Outliers(outliers.rows, outliers.columns, values.numpy().astype(np.int8))
        changed = replace(self._rows, codes=codes.numpy().astype(np.uint8), outliers=outliers)
        if self._rows.scale_kind:
            return changed
        row_scale, scale_codes = self._codes_of_scales()
        return replace(
            changed,
            row_scale=row_scale[:, 0].numpy(),
            scale_codes=scale_codes.numpy().astype(np.uint8),
        )

    def _coded_scales(self) -> Tensor:
        if self._rows.scale_kind:
            return self._scales
        scales = self._scales * self.state["scales"]
        row_scale, codes = self._codes_of_scales()
        return scales + (row_scale * codes - scales).detach()

    def _codes_of_scales(self) -> tuple[Tensor, Tensor]:
        scales = (self._scales * self.state["scales"]).detach().clamp_min(0.0)
        largest = scales.amax(1, keepdim=True) / _LARGEST_CODE
        row_scale = torch.from_numpy(to_bfloat16(largest.numpy()))
        codes = torch.where(row_scale > 0, scales / row_scale, 0.0).round()
        return row_scale, codes.clamp(0, _LARGEST_CODE)

    def _spread(self, of_blocks: Tensor) -> Tensor:
        """[N, blocks] → [N, K]"""
        block, columns = self._rows.block, self._rows.columns
        return of_blocks.repeat_interleave(block, 1)[:, :columns]


def _rounded(x: Tensor, low: int, high: int) -> Tensor:
    return x + (x.round().clamp(low, high) - x).detach()


class TunedMatrix:
    def __init__(self, matrix: QuantizedMatrix, weight: Tensor) -> None:
        self._matrix = matrix
        scale = matrix.column_scale
        self._column_scale = None if scale is None else torch.from_numpy(scale.copy())
        if self._column_scale is not None:
            weight = weight / self._column_scale
        parts = torch.split(weight, [segment.rows for segment in matrix.segments])
        self.segments = [
            TunedRows(rows, part) for rows, part in zip(matrix.segments, parts, strict=True)
        ]

    def value(self) -> Tensor:
        value = torch.cat([segment.value() for segment in self.segments])
        return value if self._column_scale is None else value * self._column_scale

    def frozen(self) -> QuantizedMatrix:
        return replace(self._matrix, segments=tuple(segment.frozen() for segment in self.segments))


@dataclass(frozen=True)
class Rates:
    """Of a step, at its fullest: in codes, and in shares of a scale."""

    codes: float
    scales: float


class Mover:
    """Adam over the states of tuned matrices; what it remembers are plain named tensors."""

    _BETAS = (0.9, 0.95)

    def __init__(self, matrices: Mapping[str, TunedMatrix], rates: Rates) -> None:
        self._rates = rates
        self.state: dict[str, Tensor] = {}
        for key, matrix in matrices.items():
            for index, segment in enumerate(matrix.segments):
                for name, tensor in segment.state.items():
                    tensor.requires_grad_(True)
                    self.state[f"{key}/{index}/{name}"] = tensor
        self.memory = {
            f"{kind}/{name}": torch.zeros_like(tensor)
            for name, tensor in self.state.items()
            for kind in ("mean", "square")
        }

    @torch.no_grad()
    def step(self, count: int, share: float) -> None:
        """`count` is 1 at the first step; `share` is the schedule's part of the full rates."""
        for name, tensor in self.state.items():
            gradient = tensor.grad
            if gradient is None:
                continue
            tensor.grad = None
            rate = self._rates.scales if name.endswith("scales") else self._rates.codes
            mean, square = self.memory[f"mean/{name}"], self.memory[f"square/{name}"]
            mean.lerp_(gradient, 1 - self._BETAS[0])
            square.lerp_(gradient.square_(), 1 - self._BETAS[1])
            spread = (square / (1 - self._BETAS[1] ** count)).sqrt_().add_(1e-12)
            tensor.addcdiv_(mean, spread, value=-rate * share / (1 - self._BETAS[0] ** count))

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        for kept in (self.state, self.memory):
            for name, tensor in kept.items():
                tensor.copy_(saved[name])
