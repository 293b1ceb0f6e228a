"""Parameters with gradients go in, and are moved: Muon for the layers' matrices, Adam for the
embedding, the convolutions and all vectors. All its state is plain named tensors, so that a run
can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_MOMENTUM = 0.95
_BETAS = (0.9, 0.95)
_EPS = 1e-10
# The quintic iteration that Muon was published with: it drives singular values to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Optimiser:
    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        matrix_rate: float,
        vector_rate: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        self._matrix_rate, self._vector_rate = matrix_rate, vector_rate
        self._decay, self._dtype = weight_decay, dtype
        apart = ("embedding", ".conv.")  # rows and columns that are not a product's
        matrices = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.ndim == 2 and not any(part in name for part in apart)
        }
        self._vectors = {n: p for n, p in parameters.items() if n not in matrices}
        self._groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, parameter in matrices.items():
            self._groups.setdefault(tuple(parameter.shape), {})[name] = parameter
        self.state = {f"momentum.{n}": torch.zeros_like(p) for n, p in matrices.items()}
        for name, parameter in self._vectors.items():
            self.state[f"mean.{name}"] = torch.zeros_like(parameter)
            self.state[f"square.{name}"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, count: int, scale: float) -> None:
        """`count` is 1 at the first step; `scale` is the schedule's share of the full rates."""
        for group in self._groups.values():
            self._move_matrices(group, self._matrix_rate * scale)
        for name, parameter in self._vectors.items():
            self._move_vector(name, parameter, count, self._vector_rate * scale)

    def _move_matrices(self, group: Mapping[str, Tensor], rate: float) -> None:
        """Matrices of one shape together, because small products cost mostly their launch."""
        directions = []
        for name, parameter in group.items():
            gradient, momentum = _taken(parameter), self.state[f"momentum.{name}"]
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            directions.append(gradient.lerp(momentum, _MOMENTUM))
        moves = orthogonalise(torch.stack(directions), self._dtype)
        rows, columns = moves.shape[-2:]
        rate *= math.sqrt(max(1.0, rows / columns))
        for parameter, move in zip(group.values(), moves, strict=True):
            parameter.mul_(1 - rate * self._decay).add_(move, alpha=-rate)

    def _move_vector(self, name: str, parameter: Tensor, count: int, rate: float) -> None:
        gradient = _taken(parameter)
        mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square_(), 1 - _BETAS[1])
        spread = (square / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPS)
        parameter.addcdiv_(mean, spread, value=-rate / (1 - _BETAS[0] ** count))


def _taken(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    parameter.grad = None
    return gradient


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, rows, columns] → the same singular vectors with singular values near 1."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    moved: Tensor = x.mT if tall else x
    return moved.float()
