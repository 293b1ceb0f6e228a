"""Norms: [..., size] → [..., size], with a float32 weight that already holds any offset."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.model.config import NormSpec


class Norm(nn.Module):
    """RMS or layer normalisation over the last dimension."""

    def __init__(self, size: int, spec: NormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # training's products give less
        if self.spec.kind == "rms":
            return functional.rms_norm(x, self.weight.shape, self.weight, self.spec.eps)
        return functional.layer_norm(x, self.weight.shape, self.weight, None, self.spec.eps)


class UnitNorm(nn.Module):
    """RMS normalisation over the last dimension without learned weights."""

    unit: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        # Ones of our own: without weights, an exported graph makes them anew in every call.
        self.register_buffer("unit", torch.ones(size, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.unit.shape, self.unit, self.eps)
