"""A layer's run goes in; the second moments of what each of its weights is multiplied with, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from edgewright.custom_ops.routed_experts.reference import activate
from edgewright.model.ops import watched

# Expert matrices that few tokens reach learn from those of all the others too.
_POOLED_SHARE = 0.1


class Hessians:
    """`shapes`: of the weights to look at, [..., N, K] by name. Each has one matrix [K, K], or a
    stack of them [E, K, K]."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._names: dict[int, str] = {}
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, held: Mapping[str, Tensor]) -> Iterator[None]:
        """`held`: the weights that are in memory now, by name."""
        for name, weight in held.items():
            if name in self._shapes:
                self._names[id(weight)] = name
                if name not in self._sums:
                    *stack, _, columns = self._shapes[name]
                    self._sums[name] = torch.zeros((*stack, columns, columns), dtype=torch.float64)
        try:
            with watched(self):
                yield
        finally:
            self._names.clear()

    def take(self, name: str) -> Tensor:
        """float64, a sum over tokens; it is no longer kept here."""
        found = self._sums.pop(name)
        if found.ndim == 2:
            return found
        return found + found.sum(0, keepdim=True) * (_POOLED_SHARE / len(found))

    @torch.no_grad()
    def product(self, x: Tensor, weight: Tensor) -> None:
        name = self._names.get(id(weight))
        if name is not None:
            self._sums[name] += _moments(x.flatten(0, -2))

    @torch.no_grad()
    def experts(
        self, tensors: tuple[Tensor, ...], activation: str, alpha: float, limit: float
    ) -> None:
        x, chosen, _, gate, up, down, gate_bias, up_bias, _ = tensors
        into = {name for weight in (gate, up) if (name := self._names.get(id(weight)))}
        out = self._names.get(id(down))
        if not into and out is None:
            return
        tokens = x.flatten(0, -2)
        index = chosen.reshape(len(tokens), -1)
        for expert in torch.unique(index).tolist():
            rows = tokens[(index == expert).any(-1)]
            moments = _moments(rows)
            for name in into:
                self._sums[name][expert] += moments
            if out is not None:
                bias = [b[expert % len(b)] for b in (gate_bias, up_bias)]
                hidden = linear(rows, up[expert].float()) + bias[1]
                if activation == "relu_squared":
                    hidden = relu(hidden).square()
                else:
                    g = linear(rows, gate[expert].float()) + bias[0]
                    hidden = activate(g, hidden, activation, alpha, limit)
                self._sums[out][expert] += _moments(hidden)


def _moments(rows: Tensor) -> Tensor:
    rows = rows.float()
    return (rows.T @ rows).double()
