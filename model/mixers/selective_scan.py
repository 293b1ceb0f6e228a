"""Mamba: [batch, seq, hidden] → the same, through a short convolution and a state for each channel
that the channels themselves say how to write, read and forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import Activation, CacheDtype, NormSpec
from edgewright.model.convolution import Convolution
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer
from edgewright.model.normalisation import Norm, UnitNorm
from edgewright.model.ops import selective_scan
from edgewright.model.precision import in_float32
from edgewright.model.rope import RopeSpec


@dataclass(frozen=True)
class SelectiveScanSpec:
    """Mamba's mixer and every variant its families need."""

    inner: int
    state: int  # values that each channel remembers
    rank: int  # of the projection to the steps
    conv_width: int = 4
    conv_bias: bool = True
    bias: bool = False  # of the input and the output projection
    activation: Activation = "silu"  # of the convolution; the gate's is always silu
    # Whether steps, writes and reads are RMS-normalised, and whether with weights.
    norms: Literal["none", "plain", "weighted"] = "none"
    norm_eps: float = 1e-6

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return ()

    def with_cache(self, dtype: CacheDtype) -> SelectiveScanSpec:
        return self

    def build(self, hidden_size: int) -> SelectiveScan:
        return SelectiveScan(hidden_size, self)


class SelectiveScan(Mixer):
    def __init__(self, hidden_size: int, spec: SelectiveScanSpec) -> None:
        super().__init__()
        self.spec = spec
        inner, state = spec.inner, spec.state
        self.input = Linear(hidden_size, 2 * inner, spec.bias)
        self.conv = Convolution(inner, spec.conv_width, spec.conv_bias, spec.activation)
        self.select = Linear(inner, spec.rank + 2 * state)
        self.step = Linear(spec.rank, inner, bias=True)
        if spec.norms != "none":
            self.step_norm = _norm(spec.rank, spec)
            self.write_norm, self.read_norm = _norm(state, spec), _norm(state, spec)
        # Below 0: a state's change in a unit step.
        self.decay = nn.Parameter(torch.empty(state, inner))
        self.skip = nn.Parameter(torch.empty(inner))
        self.output = Linear(inner, hidden_size, spec.bias)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        shape: tuple[Dim, ...] = ("batch", self.spec.state, self.spec.inner)
        state = StateSpec(f"{prefix}.state", shape, "float32", "replace")
        return self.conv.state(f"{prefix}.conv"), state

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        channels, gate = self.input(x).chunk(2, dim=-1)
        with in_float32():
            channels, conv = self.conv(channels.float(), states[0], call.length)
        selected = self.select(channels).split_with_sizes(
            [self.spec.rank, self.spec.state, self.spec.state], dim=-1
        )
        step, write, read = self._normed(*selected)
        step = functional.softplus(self.step(step))
        with in_float32():
            step = step.float()
            mixed, state = selective_scan(
                channels * step,
                step,
                self.decay,
                write.float(),
                read.float(),
                states[1],
                call.length,
            )
        mixed = (mixed + channels * self.skip) * functional.silu(gate)
        return self.output(mixed), [conv, state]

    def _normed(self, step: Tensor, write: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.spec.norms == "none":
            return step, write, read
        return self.step_norm(step), self.write_norm(write), self.read_norm(read)


def _norm(size: int, spec: SelectiveScanSpec) -> Norm | UnitNorm:
    if spec.norms == "plain":
        return UnitNorm(size, spec.norm_eps)
    return Norm(size, NormSpec("rms", spec.norm_eps))
