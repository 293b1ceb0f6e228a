"""The gated delta rule: [batch, seq, hidden] → the same. Each head remembers, in a matrix of fixed
size that fades, which value belongs to which key, and a new pair corrects what is remembered."""

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
from edgewright.model.normalisation import Norm
from edgewright.model.ops import gated_delta
from edgewright.model.rope import RopeSpec

# What published code adds to the squared length of a query or key before it divides by its root.
_LENGTH_EPS = 1e-6


@dataclass(frozen=True)
class GatedDeltaSpec:
    """A head of queries and keys serves `value_heads / key_heads` heads of values."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    norm_eps: float
    activation: Activation = "silu"  # of the convolution
    # A head's memory fades as one, or each channel of its keys at a pace of its own.
    decay: Literal["head", "channel"] = "head"
    # How much of what is remembered a new value replaces, at most; past 1 it overshoots.
    largest_beta: float = 1.0
    gate: Literal["silu", "sigmoid"] = "silu"
    # The gate, and the decay of channels, go through a vector this narrow.
    rank: int | None = None

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        width = self.key_heads * self.key_dim
        return width, width, self.value_heads * self.value_dim

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return ()

    def with_cache(self, dtype: CacheDtype) -> GatedDeltaSpec:
        return self

    def build(self, hidden_size: int) -> GatedDelta:
        return GatedDelta(hidden_size, self)


class GatedDelta(Mixer):
    unit: Tensor

    def __init__(self, hidden_size: int, spec: GatedDeltaSpec) -> None:
        super().__init__()
        self.spec = spec
        heads, width = spec.value_heads, spec.value_heads * spec.value_dim
        by_channel = spec.decay == "channel"
        self.qkv = Linear(hidden_size, sum(spec.qkv_widths))
        self.convolution = Convolution(sum(spec.qkv_widths), spec.taps, False, spec.activation)
        self.beta = Linear(hidden_size, heads)
        self.decay_down = Linear(hidden_size, spec.rank) if spec.rank and by_channel else None
        paces = heads * spec.key_dim if by_channel else heads
        self.decay = Linear(
            spec.rank if self.decay_down and spec.rank else hidden_size, paces, True
        )
        self.rate = nn.Parameter(torch.empty(heads))  # negative
        self.gate_down = Linear(hidden_size, spec.rank) if spec.rank else None
        self.gate = Linear(spec.rank or hidden_size, width)
        self.norm = Norm(spec.value_dim, NormSpec("rms", spec.norm_eps))
        self.output = Linear(width, hidden_size)
        # An RMS norm of this weight gives vectors of length one.
        unit = torch.full((spec.key_dim,), spec.key_dim**-0.5, device="cpu")
        self.register_buffer("unit", unit, persistent=False)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        spec = self.spec
        shape: tuple[Dim, ...] = ("batch", spec.value_heads, spec.key_dim, spec.value_dim)
        memory = StateSpec(f"{prefix}.memory", shape, "float32", "replace")
        return self.convolution.state(f"{prefix}.convolution"), memory

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec = self.spec
        mixed, recent = self.convolution(self.qkv(x), states[0], call.length)
        query, key, value = mixed.split(spec.qkv_widths, dim=-1)
        beta = self.beta(x).sigmoid()
        y, memory = gated_delta(
            self._unit_length(query),
            self._unit_length(key),
            value,
            self._log_decay(x),
            beta if spec.largest_beta == 1.0 else beta * spec.largest_beta,
            states[1],
            call.length,
            num_heads=spec.value_heads,
            scale=spec.key_dim**-0.5,
        )
        by_head = y.reshape(*y.shape[:2], spec.value_heads, spec.value_dim)
        return self.output(self.norm(by_head).flatten(-2) * self._gate(x)), [recent, memory]

    def _unit_length(self, x: Tensor) -> Tensor:
        spec = self.spec
        by_head = x.reshape(*x.shape[:2], spec.key_heads, spec.key_dim)
        eps = _LENGTH_EPS / spec.key_dim
        return functional.rms_norm(by_head, self.unit.shape, self.unit, eps).flatten(-2)

    def _log_decay(self, x: Tensor) -> Tensor:
        """[batch, seq, heads], or [batch, seq, heads * key_dim] by channel."""
        narrow = x if self.decay_down is None else self.decay_down(x)
        pace = functional.softplus(self.decay(narrow))
        if self.spec.decay == "head":
            return self.rate * pace
        by_head = pace.reshape(*x.shape[:2], self.spec.value_heads, self.spec.key_dim)
        return (self.rate[:, None] * by_head).flatten(-2)

    def _gate(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(x if self.gate_down is None else self.gate_down(x))
        return functional.silu(gate) if self.spec.gate == "silu" else gate.sigmoid()
