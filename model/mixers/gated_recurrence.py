"""RG-LRU: [batch, seq, hidden] → the same, through a short convolution and one state a channel,
whose input and decay are gated by what comes in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import StateSpec
from edgewright.model.activation import ACTIVATIONS
from edgewright.model.call import Call
from edgewright.model.config import Activation, CacheDtype
from edgewright.model.convolution import Convolution
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer
from edgewright.model.ops import selective_scan
from edgewright.model.rope import RopeSpec


@dataclass(frozen=True)
class GatedRecurrenceSpec:
    width: int
    blocks: int  # the gates' matrices are block-diagonal
    conv_width: int
    activation: Activation

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return ()

    def with_cache(self, dtype: CacheDtype) -> GatedRecurrenceSpec:
        return self

    def build(self, hidden_size: int) -> GatedRecurrence:
        return GatedRecurrence(hidden_size, self)


class BlockGate(nn.Module):
    """A sigmoid gate for each channel, from the channels of its own block."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(torch.empty(blocks, size, size))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        blocks, size, _ = self.weight.shape
        by_block = x.reshape(*x.shape[:2], blocks, size).transpose(1, 2)  # [B, blocks, S, size]
        gates = (by_block @ self.weight).transpose(1, 2).flatten(-2)
        return (gates + self.bias).sigmoid()


class GatedRecurrence(Mixer):
    def __init__(self, hidden_size: int, spec: GatedRecurrenceSpec) -> None:
        super().__init__()
        self.spec = spec
        self.activate = ACTIVATIONS[spec.activation]
        self.gate = Linear(hidden_size, spec.width, bias=True)
        self.input = Linear(hidden_size, spec.width, bias=True)
        self.conv = Convolution(spec.width, spec.conv_width, bias=True)
        self.input_gate = BlockGate(spec.width, spec.blocks)
        self.decay_gate = BlockGate(spec.width, spec.blocks)
        self.decay = nn.Parameter(torch.empty(1, spec.width))  # below 0: with the gate wide open
        self.output = Linear(spec.width, hidden_size, bias=True)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        state = StateSpec(f"{prefix}.state", ("batch", 1, self.spec.width), "float32", "replace")
        return self.conv.state(f"{prefix}.conv"), state

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        gate = self.activate(self.gate(x))
        h, conv = self.conv(self.input(x), states[0], call.length)
        step = self.decay_gate(h)
        # What decays makes room for what comes in; the first token has all of it.
        room = torch.sqrt(1 - torch.exp(2 * (step * self.decay)))
        room = torch.where((call.positions == 0).unsqueeze(-1), 1.0, room)
        one = torch.ones_like(h[..., :1])
        h = h * self.input_gate(h) * room
        h, state = selective_scan(h, step, self.decay, one, one, states[1], call.length)
        return self.output(h * gate), [conv, state]
