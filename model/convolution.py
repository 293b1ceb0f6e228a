"""Convolution: each channel over its last few steps, [batch, seq, channels] → the same, and what
the next call must remember of this one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import StateSpec
from edgewright.model.activation import ACTIVATIONS
from edgewright.model.config import Activation
from edgewright.model.ops import causal_conv


class Convolution(nn.Module):
    no_bias: Tensor

    def __init__(
        self, channels: int, taps: int, bias: bool, activation: Activation | None = None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(taps, channels))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        if not bias:
            self.register_buffer("no_bias", torch.zeros(channels, device="cpu"), persistent=False)

    def state(self, name: str) -> StateSpec:
        """The inputs that later steps still need."""
        taps, channels = self.weight.shape
        return StateSpec(name, ("batch", taps - 1, channels), "float32", "replace")

    def forward(self, x: Tensor, state: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        bias = self.no_bias if self.bias is None else self.bias
        # The op knows silu itself.
        known = "silu" if self.activation == "silu" else "none"
        y, state = causal_conv(x, self.weight, bias, state, length, activation=known)
        if self.activation is not None and known == "none":
            y = ACTIVATIONS[self.activation](y)
        return y, state
