"""GatedMatMul in torch: the definition that body and kernel are held to."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu, silu

from edgewright.custom_ops.packed_reference import matrices_of, packed_product


def reference(x: Tensor, weight: Tensor, *, activation: str) -> Tensor:
    (matrix,) = matrices_of(weight)
    gate, up = packed_product(x, matrix).chunk(2, -1)
    match activation:
        case "silu":
            return silu(gate) * up
        case "gelu":
            return gelu(gate) * up
        case "gelu_tanh":
            return gelu(gate, approximate="tanh") * up
    raise ValueError(f"GatedMatMul has no activation {activation!r}")


def fake(x: Tensor, weight: Tensor, *, activation: str) -> Tensor:
    raise NotImplementedError("packing makes GatedMatMul, after a graph has been traced")
