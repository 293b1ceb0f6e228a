"""Gated short convolution: [batch, seq, hidden] → the same, remembering its last few inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call
from edgewright.model.config import CacheDtype
from edgewright.model.convolution import Convolution
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer
from edgewright.model.rope import RopeSpec


@dataclass(frozen=True)
class ShortConvolutionSpec:
    taps: int
    bias: bool = False

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return ()

    def with_cache(self, dtype: CacheDtype) -> ShortConvolutionSpec:
        return self

    def build(self, hidden_size: int) -> ShortConvolution:
        return ShortConvolution(hidden_size, self)


class ShortConvolution(Mixer):
    def __init__(self, hidden_size: int, spec: ShortConvolutionSpec) -> None:
        super().__init__()
        self.input = Linear(hidden_size, 3 * hidden_size, spec.bias)
        self.conv = Convolution(hidden_size, spec.taps, spec.bias)
        self.output = Linear(hidden_size, hidden_size, spec.bias)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        return (self.conv.state(f"{prefix}.conv"),)

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        before, after, h = self.input(x).chunk(3, dim=-1)
        mixed, state = self.conv(before * h, states[0], call.length)
        return self.output(after * mixed), [state]
