"""A weight's group and the model go in; its matrices come out, and back to the parameters' values.

A group is stored as one weight: the rows of all its members, in a stack where there are experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedMatrix
from edgewright.export.quantize.plan import WeightGroup
from edgewright.model.loading import LazyModel


def matrix_of(model: LazyModel, group: WeightGroup, index: int) -> Tensor:
    """[N, K] float32: matrix `index` of the stack."""
    return rows_of(model, group, index, 0, group.shape[1])


def rows_of(model: LazyModel, group: WeightGroup, index: int, start: int, stop: int) -> Tensor:
    """The same matrix's rows start..stop."""
    found: list[Tensor] = []
    base = 0
    for name, count in zip(group.names, group.rows, strict=True):
        tensor = model.weights[name]
        low, high = max(start - base, 0), min(stop - base, count)
        if low < high:
            first = (index * count + low) * group.shape[2]
            flat = tensor.read_flat(first, first + (high - low) * group.shape[2])
            found.append(flat.float().reshape(high - low, -1))
        base += count
    return torch.cat(found)


def values_of(group: WeightGroup, stack: Sequence[QuantizedMatrix]) -> dict[str, Tensor]:
    """What the quantised stack stands for, as the parameters have it."""
    return split_values(group, [torch.from_numpy(matrix.dequantised()) for matrix in stack])


def split_values(group: WeightGroup, stack: Sequence[Tensor]) -> dict[str, Tensor]:
    """Matrices [N, K] → each member's parameter."""
    if group.kind == "experts":
        (name,) = group.names
        return {name: torch.stack(list(stack))}
    parts = torch.split(stack[0], list(group.rows))
    return dict(zip(group.names, parts, strict=True))
