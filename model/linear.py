"""Linear: [..., in] → [..., out], the weight in its stored type, the arithmetic in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewright.model.ops import block_matmul


class Linear(nn.Module):
    def __init__(self, size_in: int, size_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = block_matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


def scaled(x: Tensor, scale: float) -> Tensor:
    """No node in the graph for a scale of one."""
    return x if scale == 1.0 else x * scale
