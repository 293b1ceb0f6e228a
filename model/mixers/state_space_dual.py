"""Mamba-2: [batch, seq, hidden] → the same, through a short convolution and a decaying state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import Activation, CacheDtype
from edgewright.model.convolution import Convolution
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer
from edgewright.model.normalisation import UnitNorm
from edgewright.model.ops import state_space_dual
from edgewright.model.precision import in_float32
from edgewright.model.rope import RopeSpec


@dataclass(frozen=True)
class StateSpaceDualSpec:
    """Mamba-2's mixer and every variant its families need."""

    heads: int
    head_dim: int
    state: int  # values that each channel of a head remembers
    groups: int = 1  # of heads that share what writes to and reads from their states
    conv_width: int = 4
    conv_bias: bool = True
    activation: Activation = "silu"  # of the convolution; the gate's is always silu
    input_bias: bool = False
    output_bias: bool = False
    # None: the gate alone, no norm.
    norm_eps: float | None = 1e-5
    norm_groups: int = 1  # parts of the channels that are normalised each by itself
    norm_before_gate: bool = False
    step_limit: tuple[float, float] = (0.0, math.inf)
    # Of what the input projection gives: gate, channels, writes, reads and steps.
    scales: tuple[float, float, float, float, float] | None = None

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def sections(self) -> tuple[int, int, int, int, int]:
        """What the input projection gives, side by side."""
        shared = self.groups * self.state
        return self.inner, self.inner, shared, shared, self.heads

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return ()

    def with_cache(self, dtype: CacheDtype) -> StateSpaceDualSpec:
        return self

    def build(self, hidden_size: int) -> StateSpaceDual:
        return StateSpaceDual(hidden_size, self)


class GatedNorm(nn.Module):
    """RMS normalisation of each group of channels, before or after the gate."""

    def __init__(self, size: int, groups: int, eps: float, before_gate: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.before_gate = groups, eps, before_gate
        self.by_group = UnitNorm(size // groups, eps) if groups > 1 else None
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        gate = functional.silu(gate)
        return self._normed(x) * gate if self.before_gate else self._normed(x * gate)

    def _normed(self, x: Tensor) -> Tensor:
        if self.by_group is None:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        y: Tensor = self.by_group(grouped).flatten(-2) * self.weight
        return y


class StateSpaceDual(Mixer):
    scales: Tensor

    def __init__(self, hidden_size: int, spec: StateSpaceDualSpec) -> None:
        super().__init__()
        self.spec = spec
        self.input = Linear(hidden_size, sum(spec.sections), spec.input_bias)
        convolved = sum(spec.sections[1:4])
        self.conv = Convolution(convolved, spec.conv_width, spec.conv_bias, spec.activation)
        if spec.scales is not None:
            of_sections = [
                torch.full((size,), scale, device="cpu")
                for size, scale in zip(spec.sections, spec.scales, strict=True)
            ]
            self.register_buffer("scales", torch.cat(of_sections), persistent=False)
        self.step_bias = nn.Parameter(torch.empty(spec.heads))
        self.decay = nn.Parameter(torch.empty(spec.heads))  # below 0: a state's change a unit step
        self.skip = nn.Parameter(torch.empty(spec.heads))
        if spec.norm_eps is not None:
            self.norm = GatedNorm(
                spec.inner, spec.norm_groups, spec.norm_eps, spec.norm_before_gate
            )
        self.output = Linear(spec.inner, hidden_size, spec.output_bias)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        spec = self.spec
        shape: tuple[Dim, ...] = ("batch", spec.heads, spec.state, spec.head_dim)
        state = StateSpec(f"{prefix}.state", shape, "float32", "replace")
        return self.conv.state(f"{prefix}.conv"), state

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        gate, channels, step = self._project(x)
        with in_float32():
            mixed, new_states = self._scan(channels.float(), step.float(), call, states)
        if self.spec.norm_eps is None:
            mixed = mixed * functional.silu(gate)
        else:
            mixed = self.norm(mixed, gate)
        return self.output(mixed), new_states

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, what goes into the convolution, and the steps."""
        spec = self.spec
        projected = self.input(x)
        if spec.scales is not None:
            projected = projected * self.scales
        sizes = [spec.inner, sum(spec.sections[1:4]), spec.heads]
        gate, channels, step = projected.split_with_sizes(sizes, dim=-1)
        return gate, channels, step

    def _scan(
        self, channels: Tensor, step: Tensor, call: Call, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        spec = self.spec
        channels, conv = self.conv(channels, states[0], call.length)
        inner, write, read = channels.split_with_sizes([*spec.sections[1:4]], dim=-1)
        step = functional.softplus(step + self.step_bias)
        if spec.step_limit != (0.0, math.inf):
            step = step.clamp(*spec.step_limit)
        mixed, state = state_space_dual(
            inner,
            step,
            self.decay,
            write,
            read,
            self.skip,
            states[1],
            call.length,
            groups=spec.groups,
        )
        return mixed, [conv, state]
