"""BlockMatMul in torch: the definition that body and kernel are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from edgewright.custom_ops.packed_reference import matrices_of, packed_product


def reference(x: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype == torch.uint8:
        (matrix,) = matrices_of(weight)
        return packed_product(x, matrix)
    return x @ weight.to(torch.float32).transpose(0, 1)


def fake(x: Tensor, weight: Tensor) -> Tensor:
    assert weight.dtype != torch.uint8, "a traced weight is of floats; packing comes afterwards"
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
