"""Linear: [..., in] → [..., out] with the weight in its stored type and the arithmetic in float32."""

from __future__ import annotations

import torch
from edgewright.custom_ops.torch_ops import block_matmul
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, size_in: int, size_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = block_matmul(x, self.weight)
        return y if self.bias is None else y + self.bias
